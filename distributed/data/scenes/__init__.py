"""The built-in data: pictures of one to four coloured shapes in spatial relations, with five paraphrased captions each.

Scenes come in families that differ in a single attribute, so that every gallery holds hard negatives; no two pictures
of the data set show the same scene. Everything follows from one seed.

- `sampling`, `render`, `captions`: what is in a scene, its picture, and what is said of it.
"""

from collections.abc import Iterator

from distributed.data.scenes.captions import captions
from distributed.data.scenes.render import render_png
from distributed.data.scenes.sampling import sample_families
from distributed.data.writer import Sample

SIZES = {"train": 2400, "val": 300, "test": 500}


def scene_splits(*, seed: int, sizes: dict[str, int] | None = None) -> dict[str, Iterator[Sample]]:
    """Return the samples per split; `sizes` (multiples of 10, the family size) defaults to 2,400 / 300 / 500."""
    families = sample_families(seed, sizes or SIZES)

    def samples(split: str) -> Iterator[Sample]:
        for number, (scene, family, changed) in enumerate(families[split]):
            picture_seed = f"{seed}/{split}/{number}"
            extra = {"family": family, "changed": changed, **scene.as_dict()}
            key = f"{split}-{number:05d}"
            yield Sample(key, "png", render_png(scene, picture_seed), captions(scene, picture_seed), extra)

    return {split: samples(split) for split in families}
