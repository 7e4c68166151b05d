"""Image–text data: build it, check it, read it in a seeded order that resumes exactly.

Signatures (first version, implementation follows in the modules):

open_dataset(path) -> Dataset
Dataset: folder, manifest, kind ("image" | "regions"), len(), captions(row) -> list[str], key(row) -> str,
    all_captions() -> Iterator[str], read(row) -> RawSample(key, id, extension, data: bytes, captions)     (id == row)
TrainReader(dataset, *, global_batch, seed, rank=0, world=1, image_size=64, captions_per_image=1, shuffle_window=16384,
    augment="none", max_image_pixels=50_000_000, max_bad_fraction=0.01, cache_mb=512, prefetch=2, threads=2, min_rows=2,
    tokenize=None)
    .start -> Position(seed, 0, 0), .steps_per_epoch, .steps_left(position) -> int,
    .batches(position) -> generator of TrainBatch to the end of position's epoch (close() or leaving the loop stops the threads),
    .seen, .bad (Counter), .check_bad_fraction() raises UserError
evaluation_batches(dataset, *, batch, rank=0, world=1, image_size=64, max_image_pixels=50_000_000, max_bad_fraction=0.01,
    prefetch=2, threads=2, tokenize=None) -> generator of Batch (all captions, image-major)
"""

from distributed.data.batch import Batch, TrainBatch
from distributed.data.position import Position

__all__ = ["Batch", "Position", "TrainBatch"]
