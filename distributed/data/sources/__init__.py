"""Where data sets come from: one function per source, each writing one data set folder per split under `out`.

All refuse an `out` that exists unless `overwrite` is given, and leave nothing behind when they fail. They raise
UserError for a source that is not what it should be. `margin_columns` name numbers of the source that come along.

- `folder`, `karpathy`, `img2dataset`, `regions`: other people's layouts.
- `emoji`: a data set of real drawings, made of two public repositories.
- `tiles`: regions cut from the pictures of a data set.
- `shuffled`: a data set some of whose training captions changed places, for experiments with pairs that do not match.
"""

import re
from collections.abc import Sequence
from pathlib import Path

from allpairs.errors import UserError
from distributed.data.build import Built, Incomplete, write_splits
from distributed.data.columns import with_columns
from distributed.data.scenes import scene_splits
from distributed.data.shards import readable
from distributed.data.sources.emoji import emoji_splits
from distributed.data.sources.folder import folder_splits
from distributed.data.sources.img2dataset import find_shards, index_shards
from distributed.data.sources.karpathy import karpathy_splits
from distributed.data.sources.regions import region_splits
from distributed.data.sources.shuffled import shuffle_splits
from distributed.data.sources.tiles import tile_splits
from distributed.data.writer import new_folder

SHARD_SAMPLES = 1000


def build_scenes(*, out: Path, seed: int = 0, overwrite: bool = False, shard_samples: int = SHARD_SAMPLES) -> Built:
    """Render the built-in data: 2,400/300/500 pictures of coloured shapes with five captions each."""
    about = {"kind": "scenes", "seed": seed}
    splits = scene_splits(seed=seed)
    return write_splits(out, splits, name="scenes", source=about, overwrite=overwrite, shard_samples=shard_samples)


def build_karpathy(
    file: Path,
    *,
    images: Path,
    out: Path,
    skip_incomplete: bool = False,
    follow_symlinks: bool = False,
    margin_columns: Sequence[str] = (),
    overwrite: bool = False,
    shard_samples: int = SHARD_SAMPLES,
) -> Built:
    """Write a Karpathy-schema JSON with its folder of images; restval joins train."""
    incomplete = Incomplete(skip=skip_incomplete)
    name, splits = karpathy_splits(
        file, images, incomplete, follow_symlinks=follow_symlinks, margin_columns=margin_columns
    )
    about = with_columns({"kind": "karpathy", "file": readable(file.name)}, margin_columns)
    built = write_splits(out, splits, name=name, source=about, overwrite=overwrite, shard_samples=shard_samples)
    return built.without(incomplete)


def build_folder(
    folder: Path,
    *,
    out: Path,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    skip_incomplete: bool = False,
    follow_symlinks: bool = False,
    margin_columns: Sequence[str] = (),
    overwrite: bool = False,
    shard_samples: int = SHARD_SAMPLES,
) -> Built:
    """Write images that lie beside text files of the same name; `val` and `test` are fractions of an unsplit folder."""
    incomplete = Incomplete(skip=skip_incomplete)
    splits = folder_splits(
        folder,
        incomplete,
        seed=seed,
        val=val,
        test=test,
        follow_symlinks=follow_symlinks,
        margin_columns=margin_columns,
    )
    about = with_columns({"kind": "folder", "seed": seed, "val": val, "test": test}, margin_columns)
    name = readable(folder.resolve().name)
    built = write_splits(out, splits, name=name, source=about, overwrite=overwrite, shard_samples=shard_samples)
    return built.without(incomplete)


def build_emoji(
    *,
    noto: Path,
    cldr: Path,
    out: Path,
    pixels: int = 72,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    overwrite: bool = False,
    shard_samples: int = SHARD_SAMPLES,
) -> Built:
    """Write emoji with English captions from checkouts of googlefonts/noto-emoji and unicode-org/cldr-json."""
    incomplete = Incomplete(skip=False)
    splits = emoji_splits(noto, cldr, incomplete, pixels=pixels, seed=seed, val=val, test=test)
    about = {"kind": "emoji", "pixels": pixels, "seed": seed, "val": val, "test": test}
    built = write_splits(out, splits, name="emoji", source=about, overwrite=overwrite, shard_samples=shard_samples)
    return built.without(incomplete)


def build_regions(
    folder: Path,
    *,
    out: Path,
    skip_incomplete: bool = False,
    overwrite: bool = False,
    shard_samples: int = SHARD_SAMPLES,
) -> Built:
    """Write precomputed region features: ``{split}_ims.npy`` with ``{split}_caps.txt``, five captions per image."""
    incomplete = Incomplete(skip=skip_incomplete)
    built = write_splits(
        out,
        region_splits(folder, incomplete),
        name=readable(folder.resolve().name),
        source={"kind": "regions"},
        kind="regions",
        overwrite=overwrite,
        shard_samples=shard_samples,
    )
    return built.without(incomplete)


def build_tiles(
    folder: Path,
    *,
    out: Path,
    grid: int = 4,
    side: int = 12,
    skip_incomplete: bool = False,
    overwrite: bool = False,
    shard_samples: int = SHARD_SAMPLES,
) -> Built:
    """Write regions cut from the pictures of the data set in `folder`: grid² tiles of side² pixels each."""
    incomplete = Incomplete(skip=skip_incomplete)
    built = write_splits(
        out,
        tile_splits(folder, incomplete, grid=grid, side=side),
        name=readable(folder.resolve().name),
        source={"kind": "tiles", "grid": grid, "side": side},
        kind="regions",
        overwrite=overwrite,
        shard_samples=shard_samples,
    )
    return built.without(incomplete)


def build_shuffled(
    folder: Path,
    *,
    out: Path,
    fraction: float,
    seed: int = 0,
    overwrite: bool = False,
    shard_samples: int = SHARD_SAMPLES,
) -> Built:
    """Write the data set in `folder` with this `fraction` of its training captions changed round; for experiments."""
    splits, kind, about = shuffle_splits(folder, fraction=fraction, seed=seed)
    name = f"{readable(folder.resolve().name)}, {100 * fraction:g} % of training captions shuffled"
    return write_splits(
        out, splits, name=name, source=about, kind=kind, overwrite=overwrite, shard_samples=shard_samples
    )


def build_img2dataset(
    *sources: str, out: Path, split: str, margin_columns: Sequence[str] = (), overwrite: bool = False
) -> Built:
    """Index img2dataset shards (folders, files or glob patterns) where they lie, as the one split `out`/`split`."""
    if not re.fullmatch(r"\w[\w.-]{0,99}", split):
        raise UserError(f"--split {split!r}: a plain name, such as train, val or test")
    files = find_shards(sources)
    with new_folder(out / split, overwrite=overwrite) as fresh:
        manifest = index_shards(
            fresh, files, name=readable(out.resolve().name), split=split, margin_columns=margin_columns
        )
    return Built(out, [manifest])
