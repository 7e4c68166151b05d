"""The subcommands of ``python -m distributed.data build``, one per source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from distributed.data.build import build, print_built
from distributed.data.sources.incomplete import Incomplete
from distributed.data.writer import new_folder

app = App(name="build", help="Write a data set: WebDataset shards, an index and a manifest per split.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how to write."""

    out: Path
    """Folder to write; it gets one subfolder per split."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    shard_samples: int = 1000
    """Samples per shard (a shard also ends at 256 MiB)."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Splits:
    """How to split a source that comes without splits."""

    seed: int = 0
    """Another seed gives other splits."""
    val: float = 0.1
    """Fraction of the images for validation."""
    test: float = 0.1
    """Fraction of the images for testing."""


SkipIncomplete = Annotated[bool, Parameter(help="Leave out samples without image or caption, instead of stopping.")]


@app.command
def scenes(*, target: Target, seed: int = 0) -> None:
    """Render the built-in data: 2,400/300/500 pictures of coloured shapes, five captions each."""
    from distributed.data.scenes import scene_splits

    _build(target, scene_splits(seed=seed), "scenes", {"kind": "scenes", "seed": seed}, Incomplete(skip=False))


@app.command
def karpathy(json: Path, *, images: Path, target: Target, skip_incomplete: SkipIncomplete = False) -> None:
    """A Karpathy-schema JSON (COCO, Flickr30K, …) and its folder of images; restval joins train."""
    from distributed.data.sources.karpathy import karpathy_splits

    incomplete = Incomplete(skip=skip_incomplete)
    name, splits = karpathy_splits(json, images, incomplete)
    _build(target, splits, name, {"kind": "karpathy", "file": json.name}, incomplete)


@app.command
def folder(folder: Path, *, target: Target, splits: Splits = Splits(), skip_incomplete: SkipIncomplete = False) -> None:
    """Images, each beside a .txt of the same name (a caption per line); subfolders train/val/test are its splits."""
    from distributed.data.sources.folder import folder_splits

    incomplete = Incomplete(skip=skip_incomplete)
    samples = folder_splits(folder, incomplete, seed=splits.seed, val=splits.val, test=splits.test)
    _build(target, samples, folder.resolve().name, {"kind": "folder", **vars(splits)}, incomplete)


@app.command
def emoji(
    *, noto: Path, cldr: Path, target: Target, pixels: int = 72, splits: Splits = Splits(val=0.1, test=0.16)
) -> None:
    """Emoji with English captions, from checkouts of googlefonts/noto-emoji and unicode-org/cldr-json."""
    from distributed.data.sources.emoji import emoji_splits

    incomplete = Incomplete(skip=False)
    samples = emoji_splits(noto, cldr, incomplete, pixels=pixels, seed=splits.seed, val=splits.val, test=splits.test)
    _build(target, samples, "emoji", {"kind": "emoji", "pixels": pixels, **vars(splits)}, incomplete)


@app.command
def regions(folder: Path, *, target: Target) -> None:
    """Precomputed region features: {split}_ims.npy and {split}_caps.txt with five captions per image."""
    from distributed.data.sources.regions import region_splits

    name = folder.resolve().name
    _build(target, region_splits(folder), name, {"kind": "regions"}, Incomplete(skip=False), kind="regions")


@app.command
def img2dataset(*sources: str, out: Path, split: str, overwrite: bool = False) -> None:
    """Index img2dataset shards where they lie, without copying them, as one split: OUT/SPLIT.

    Parameters
    ----------
    sources
        Folders, tar files or quoted glob patterns.
    out
        Folder of the data set.
    split
        The split these shards are: train, val, test or a name of your own.
    overwrite
        Replace this split if it is there already.
    """
    from distributed.data.sources.img2dataset import find_shards, index_shards

    files = find_shards(sources)
    with new_folder(out / split, overwrite=overwrite) as fresh:
        manifest = index_shards(fresh, files, name=out.resolve().name, split=split)
    print_built(out, [manifest])


def _build(
    target: Target, splits: dict, name: str, source: dict, incomplete: Incomplete, *, kind: str = "image"
) -> None:
    build(
        target.out,
        splits,
        name=name,
        source=source,
        incomplete=incomplete,
        overwrite=target.overwrite,
        shard_samples=target.shard_samples,
        kind=kind,
    )
