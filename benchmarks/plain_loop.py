"""The peer of the training service: one process, plain PyTorch and webdataset, no Ray.

    python -m benchmarks.plain_loop --config configs/emoji.yaml [--keep-decoded] [section.key=value ...]

Model, batch, epochs, optimiser and loss arguments come from the same configuration file, the pairs from the same
shards; the rest is written out here as one would in a script, the losses and the recalls included. Prints one JSON
object: the seconds spent in training steps (data included, evaluation and start-up not) and the recalls of the epoch
that val chose.
"""

import argparse
import io
import json
import math
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel

from allpairs.errors import UserError
from allpairs.models import DualEncoder, Vocabulary, build
from distributed.config import Config, load

Sample = tuple[Tensor, list[str]]


def read(folder: Path, side: int, shuffle: random.Random | None = None) -> Iterable[Sample]:
    """Stream a split's (image uint8 [3, side, side], captions); `shuffle` gives every pass its own random order."""
    shards = sorted(map(str, folder.glob("shard-*.tar")))
    if not shards:
        raise UserError(f"{folder}: no shard-*.tar in it; build it with python -m distributed.data build")
    dataset = wds.WebDataset(shards, shardshuffle=False)
    if shuffle is not None:
        dataset = dataset.shuffle(4096, initial=4096, rng=shuffle)
    return dataset.to_tuple("png;jpg;jpeg;webp", "txt").map_tuple(
        lambda data: decode(data, side), lambda text: text.decode().splitlines()
    )


def decode(data: bytes, side: int) -> Tensor:
    """Return the picture on white, uint8 [3, side, side]."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    white = Image.new("RGBA", image.size, "white")
    white.alpha_composite(image)
    pixels = np.array(white.convert("RGB").resize((side, side), Image.Resampling.BICUBIC))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def crop(image: Tensor, side: int, draws: random.Random) -> Tensor:
    """Return a drawn window of at least 7/8 of the picture's side, `[3, side, side]`: `data.augment: crop`."""
    full = image.shape[-1]
    window = full * draws.uniform(7 / 8, 1)
    left, top = ((full - window) * draws.random() for _ in range(2))
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    box = (left, top, left + window, top + window)
    pixels = np.array(picture.resize((side, side), Image.Resampling.BILINEAR, box=box))
    return torch.from_numpy(pixels).permute(2, 0, 1)


def batches(samples: Iterable[Sample], size: int) -> Iterator[list[Sample]]:
    """Cut a pass into whole batches; the incomplete last one is dropped."""
    batch: list[Sample] = []
    for sample in samples:
        batch.append(sample)
        if len(batch) == size:
            yield batch
            batch = []


def loss_of(similarities: Tensor, name: str, margin: float = 0.2, scale: float = 1 / 0.07) -> Tensor:
    """The in-batch losses written out, both directions: `unified`, `vlc` and `triplet_hn`."""
    labels = torch.arange(len(similarities))
    others = ~torch.eye(len(similarities), dtype=torch.bool)
    total = similarities.new_zeros(())
    for rows in (similarities, similarities.T):
        gaps = rows - rows.diagonal()[:, None]
        if name == "unified":  # the diagonal becomes e^0: the 1 inside the logarithm
            total = total + torch.logsumexp((scale * (gaps + margin)) * others, dim=1).mean() / scale
        elif name == "vlc":
            total = total + F.cross_entropy(scale * rows, labels)
        elif name == "triplet_hn":
            total = total + F.relu(margin + gaps[others].view(len(rows), -1).amax(dim=1)).mean()
        else:
            raise UserError(f"objective.name={name!r}: the plain loop knows unified, vlc and triplet_hn")
    return total


def ema_of_steps(decay: float) -> Callable[[Any, Any, Tensor | int], None]:
    """How AveragedModel takes weights in: ``a ← d·a + (1 − d)·w`` with ``d = min(decay, (1 + n) / (10 + n))``."""

    def blend(averages: Any, weights: Any, steps: Tensor | int) -> None:
        torch._foreach_lerp_(averages, weights, 1 - min(decay, (1 + int(steps)) / (10 + int(steps))))

    return blend


@torch.no_grad()
def recalls(model: DualEncoder, vocabulary: Vocabulary, samples: list[Sample]) -> dict[str, float]:
    """Recall@1/5/10 in percent in both directions, by sorting."""
    model.eval()
    captions = [caption for _, texts in samples for caption in texts]
    owners = np.array([row for row, (_, texts) in enumerate(samples) for _ in texts])
    images = torch.cat([model.encode_images(part) for part in torch.stack([image for image, _ in samples]).split(256)])
    starts = range(0, len(captions), 256)
    texts = torch.cat([model.encode_texts(*vocabulary.encode(captions[start : start + 256])) for start in starts])
    model.train()
    similarities = (images @ texts.T).numpy()
    metrics: dict[str, float] = {}
    for name, found in (
        ("i2t", owners[np.argsort(-similarities, axis=1)] == np.arange(len(samples))[:, None]),
        ("t2i", np.argsort(-similarities.T, axis=1) == owners[:, None]),
    ):
        metrics |= {f"{name}/r{k}": 100 * float((found.argmax(axis=1) < k).mean()) for k in (1, 5, 10)}
    return metrics | {"rsum": sum(metrics.values())}


def train(config: Config, *, keep_decoded: bool) -> dict[str, float]:
    """Train as `config` says; return seconds and recalls."""
    if config.optimizer.schedule != "cosine":
        raise UserError(f"optimizer.schedule={config.optimizer.schedule!r}: the plain loop knows cosine only")
    if config.data.augment == "crop_flip":
        raise UserError("data.augment=crop_flip: the plain loop knows none and crop")
    torch.manual_seed(config.train.seed)
    draws = random.Random(config.train.seed)
    side, optimizer_config = config.data.image_size, config.optimizer
    data, root = config.data, config.data.root
    cropped = data.augment == "crop"
    train_set = read(root / data.train, round(side * 8 / 7) if cropped else side, draws)
    first_pass = list(train_set)
    val, test = (list(read(root / split, side)) for split in (data.val, data.test or data.val))
    vocabulary = Vocabulary.build(caption for _, captions in first_pass for caption in captions)
    model = build(config.model, len(vocabulary)).train()
    average = None
    if config.train.ema_decay is not None:  # softer over the first steps, when the weights know nothing
        average = AveragedModel(model, multi_avg_fn=ema_of_steps(config.train.ema_decay))
    optimizer = torch.optim.AdamW(
        [
            {"params": [p for p in model.parameters() if p.ndim > 1], "weight_decay": optimizer_config.weight_decay},
            {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=optimizer_config.lr,
        betas=optimizer_config.betas,
    )
    steps = len(first_pass) // config.train.global_batch
    warmup, total = round(optimizer_config.warmup_epochs * steps), config.train.epochs * steps
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: (
            (step + 1) / (warmup + 1)
            if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
        ),
    )
    seconds, chosen = 0.0, {"val/rsum": -1.0}
    for epoch in range(1, config.train.epochs + 1):
        started, losses = time.perf_counter(), []
        if keep_decoded:
            draws.shuffle(first_pass)
        for batch in batches(first_pass if keep_decoded else train_set, config.train.global_batch):
            tokens, lengths = vocabulary.encode([draws.choice(captions) for _, captions in batch])
            pictures = [crop(image, side, draws) if cropped else image for image, _ in batch]
            images, texts = model(torch.stack(pictures), tokens, lengths)
            loss = loss_of(images @ texts.T, config.objective.name, **config.objective.arguments())
            optimizer.zero_grad()
            loss.backward()
            if optimizer_config.clip_norm is not None:
                torch.nn.utils.clip_grad_norm_(model.parameters(), optimizer_config.clip_norm)
            optimizer.step()
            schedule.step()
            if average is not None:
                average.update_parameters(model)
            losses.append(loss.item())
        seconds += time.perf_counter() - started
        measured = model if average is None else cast("DualEncoder", average.module)
        val_rsum = recalls(measured, vocabulary, val)["rsum"]
        if val_rsum > chosen["val/rsum"]:
            chosen = {"epoch": epoch, "val/rsum": val_rsum}
            chosen |= {f"test/{name}": value for name, value in recalls(measured, vocabulary, test).items()}
        print(f"epoch {epoch} loss {np.mean(losses):.4f} val rsum {val_rsum:.1f} {seconds:.1f} s", file=sys.stderr)
    return {"train/seconds": seconds, "train/seconds_per_epoch": seconds / config.train.epochs, **chosen}


def main() -> None:
    parser = argparse.ArgumentParser(description="The plain single-process training loop.")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2, help="torch threads")
    parser.add_argument("--keep-decoded", action="store_true", help="decode every image once and keep it in memory")
    parser.add_argument("overrides", nargs="*", help="section.key=value")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    try:
        config = load(arguments.config, arguments.overrides)
        result = train(config, keep_decoded=arguments.keep_decoded)
    except UserError as error:
        parser.exit(2, f"error: {error}\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
