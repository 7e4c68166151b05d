"""What the readers hand to the training loop and to the evaluation.

Shapes: b images of this rank's batch · C their captions (training: k·b, k captions per image) · S image side in
pixels · R regions · F features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from distributed.data.position import Position

if TYPE_CHECKING:
    import torch  # not at run time: building and checking data should start without the seconds it takes

Tokenize = Callable[[list[str]], Any]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Images with their captions, joined by id; captions are image-major: all of image 0's, then all of image 1's, …

    Attributes:
        images: ``[b, 3, S, S]`` uint8, RGB; for precomputed regions ``[b, R, F]`` float32.
        image_ids: ``[b]`` int64, the sample's row in its dataset.
        captions: the ``C`` captions as text.
        caption_ids: ``[C]`` int64, for each caption the id of the image it describes.
        tokens: what the reader's `tokenize` made of `captions`; None without one.
        keys: the ``b`` sample keys, for messages and example tables.
        seen: samples read for this batch, bad ones included.
        bad: how many of them were dropped, by cause.
    """

    images: torch.Tensor
    image_ids: torch.Tensor
    captions: list[str]
    caption_ids: torch.Tensor
    tokens: Any
    keys: list[str]
    seen: int
    bad: dict[str, int]


@dataclass(frozen=True, kw_only=True)
class TrainBatch(Batch):
    """One rank's slice of one global batch.

    Attributes:
        position: where to resume after this batch; the epoch's last batch points to sample 0 of the next epoch.
        global_rows: samples of the whole global batch over all ranks, bad ones included.
    """

    position: Position
    global_rows: int
