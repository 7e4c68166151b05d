"""One training step's forward: encode this rank's pairs, then the objective over everybody's.

Legend: b images on this rank, c their captions (c = b unless an objective over sets gets k captions per image),
D embedding, L words, S image side, R regions, F features.
"""

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allpairs.models import DualEncoder, Ensemble
from allpairs.objectives import PairObjective
from distributed.clock import Clock
from distributed.compiling import leave_sizes_open
from distributed.data import Batch


class Pairs(NamedTuple):
    """One rank's pairs, on its device: what the encoders and the objective read."""

    images: Tensor
    """`[b, 3, S, S]` uint8, or regions `[b, R, F]` float32."""
    tokens_cL: Tensor
    lengths_c: Tensor
    image_ids_b: Tensor
    caption_ids_c: Tensor
    margins_b: Tensor | None = None
    """One margin per pair in place of the objective's (U-Eq. 26), float32; of an ensemble one for each net, `[b, 2]`;
    None: the objective's own."""
    text_ids_c: Tensor | None = None
    """Equal for captions that say the same; None: they are each other's negatives."""

    @classmethod
    def of(cls, batch: Batch, device: torch.device) -> "Pairs":
        """Move `batch` to `device`; the copies overlap with the queue of a GPU."""
        tokens_cL, lengths_c = batch.tokens
        tensors = (batch.images, tokens_cL, lengths_c, batch.image_ids, batch.caption_ids)
        pairs = cls(*(tensor.to(device, non_blocking=True) for tensor in tensors))
        if batch.margins is not None:
            pairs = pairs._replace(margins_b=batch.margins.to(device, non_blocking=True))
        if batch.text_ids is not None:
            pairs = pairs._replace(text_ids_c=batch.text_ids.to(device, non_blocking=True))
        return pairs

    def of_rows(self, images: slice, texts: slice) -> "Pairs":
        """Return some of the images with their captions."""
        tokens_cL, lengths_c = self.tokens_cL[texts], self.lengths_c[texts]
        margins_b = None if self.margins_b is None else self.margins_b[images]
        text_ids_c = None if self.text_ids_c is None else self.text_ids_c[texts]
        ids = self.image_ids_b[images], self.caption_ids_c[texts]
        return Pairs(self.images[images], tokens_cL, lengths_c, *ids, margins_b, text_ids_c)


class Chunk(NamedTuple):
    """Some of a rank's pairs and the loss's gradients at their embeddings (`distributed.cached`)."""

    pairs: Pairs
    images_bD: Tensor
    texts_cD: Tensor
    objective: tuple[Tensor, ...] | None
    """The gradients of the objective's learned parameters; they come once a step."""


class StepOutput(NamedTuple):
    """What one forward gives: the loss to call backward on, and the embeddings it came from."""

    loss: Tensor
    images_bD: Tensor
    texts_cD: Tensor


class TrainStep(nn.Module):
    """Encoder and objective as one module, so that data parallelism averages the gradients of both.

    The objective's own parameters (a learned scale) then follow the same rule as the encoder's.
    """

    def __init__(
        self, encoder: DualEncoder, objective: PairObjective[Any], group: dist.ProcessGroup | None, precision: str
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.objective = objective
        self.warmup: PairObjective[Any] | None = None
        """The objective while `warming_up`."""
        self.warming_up = False
        self.margin_weight: float | None = None
        """With margins per pair: None puts them in the place of the objective's, a number adds so much of the loss with
        them to the loss without (`margins.source: sam`)."""
        self.compiled = False
        """Whether calls of the encoder run compiled code (`distributed.compiling`)."""
        self.group = group
        self.clock = Clock(torch.device("cpu"))
        """The training loop puts its own here."""
        self.bf16 = precision == "bf16"

    def constrain(self) -> None:
        """Take learned parameters of the objective back into their bounds, after the optimiser's step."""
        self.objective.constrain()

    def forward(self, work: Pairs | Chunk) -> StepOutput | Tensor:
        """Return the loss as `allpairs.objectives` scales it for averaging over ranks, and the embeddings.

        Of a chunk: a number whose backward carries the chunk's gradients to the weights.
        """
        if isinstance(work, Chunk):
            return self._carry(work)
        images_bD, texts_cD = self.encode(work)
        loss = self.loss(images_bD, texts_cD, work)
        self.clock.sync_follows(loss)
        return StepOutput(loss, images_bD.detach(), texts_cD.detach())

    def encode(self, pairs: Pairs) -> tuple[Tensor, Tensor]:
        """Return the embeddings `[b, D]` and `[c, D]`."""
        if self.compiled:
            leave_sizes_open(pairs.images, pairs.tokens_cL, pairs.lengths_c)
        autocast = torch.autocast(pairs.images.device.type, dtype=torch.bfloat16, enabled=self.bf16)
        with self.clock.timing("encode"), autocast:
            images_bD, texts_cD = self.encoder(pairs.images, pairs.tokens_cL, pairs.lengths_c)
        return images_bD, texts_cD

    def loss(self, images_bD: Tensor, texts_cD: Tensor, pairs: Pairs) -> Tensor:
        """Return the objective over everybody's embeddings. Collective."""
        with self.clock.timing("loss"):
            return self._loss(images_bD, texts_cD, pairs)

    def _loss(self, images_bD: Tensor, texts_cD: Tensor, pairs: Pairs) -> Tensor:
        objective = self.warmup if self.warming_up and self.warmup is not None else self.objective
        if self.bf16:
            # In the type that the encoders computed in: a GPU's fast products. The objective normalises in float32.
            images_bD, texts_cD = images_bD.to(torch.bfloat16), texts_cD.to(torch.bfloat16)
        ids = {"query_ids": pairs.image_ids_b, "candidate_ids": pairs.caption_ids_c, "text_ids": pairs.text_ids_c}
        if isinstance(self.encoder, Ensemble):
            vectors = zip(self.encoder.of_each(images_bD), self.encoder.of_each(texts_cD), strict=True)
            margins = [None] * len(self.encoder.nets) if pairs.margins_b is None else pairs.margins_b.unbind(1)
            losses = [
                objective(*sides, **ids, margins=own, group=self.group)
                for sides, own in zip(vectors, margins, strict=True)
            ]
            return torch.stack(losses).mean()
        loss: Tensor = objective(images_bD, texts_cD, **ids, margins=pairs.margins_b, group=self.group)
        if self.margin_weight is not None:
            loss = objective(images_bD, texts_cD, **ids, group=self.group) + self.margin_weight * loss
        return loss

    def _carry(self, chunk: Chunk) -> Tensor:
        images_bD, texts_cD = self.encode(chunk.pairs)
        carried = (images_bD * chunk.images_bD).sum() + (texts_cD * chunk.texts_cD).sum()
        if chunk.objective is not None:
            learned = [parameter for parameter in self.objective.parameters() if parameter.requires_grad]
            for parameter, gradient in zip(learned, chunk.objective, strict=True):
                carried = carried + (parameter * gradient).sum()
            self.clock.sync_follows(carried)
        return carried
