"""The subcommands of ``python -m distributed.data build``, one per source."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from distributed.data import sources
from distributed.data.build import print_built

app = App(name="build", help="Write a data set: WebDataset shards, an index and a manifest per split.")


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Target:
    """Where and how to write."""

    out: Path
    """Folder to write; it gets one subfolder per split."""
    overwrite: bool = False
    """Replace a data set that is there already."""
    shard_samples: int = sources.SHARD_SAMPLES
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
FollowSymlinks = Annotated[
    bool, Parameter(help="Read links that lead out of the folder too: whatever they name becomes data.")
]
MarginColumns = Annotated[
    tuple[str, ...],
    Parameter(
        name="--margin-column",
        negative=(),
        help="Number of the source that travels with the pairs, for margins.source=column; may be given several times.",
    ),
]


@app.command
def scenes(*, target: Target, seed: int = 0) -> None:
    """Render the built-in data: 2,400/300/500 pictures of coloured shapes, five captions each.

    Parameters
    ----------
    seed
        Another seed gives another data set.
    """
    print_built(sources.build_scenes(seed=seed, **vars(target)))


@app.command
def karpathy(
    json: Path,
    *,
    images: Path,
    target: Target,
    skip_incomplete: SkipIncomplete = False,
    follow_symlinks: FollowSymlinks = False,
    margin_columns: MarginColumns = (),
) -> None:
    """A Karpathy-schema JSON (COCO, Flickr30K, …) and its folder of images; restval joins train.

    Parameters
    ----------
    json
        The JSON file.
    images
        Folder that its image paths start from.
    """
    built = sources.build_karpathy(
        json,
        images=images,
        skip_incomplete=skip_incomplete,
        follow_symlinks=follow_symlinks,
        margin_columns=margin_columns,
        **vars(target),
    )
    print_built(built)


@app.command
def folder(
    folder: Path,
    *,
    target: Target,
    splits: Splits = Splits(),
    skip_incomplete: SkipIncomplete = False,
    follow_symlinks: FollowSymlinks = False,
    margin_columns: MarginColumns = (),
) -> None:
    """Images, each beside a .txt of the same name (a caption per line); subfolders train/val/test are its splits.

    Parameters
    ----------
    folder
        Folder of the pairs.
    """
    built = sources.build_folder(
        folder,
        skip_incomplete=skip_incomplete,
        follow_symlinks=follow_symlinks,
        margin_columns=margin_columns,
        **vars(splits),
        **vars(target),
    )
    print_built(built)


@app.command
def emoji(*, noto: Path, cldr: Path, target: Target, splits: Splits = Splits(), pixels: int = 72) -> None:
    """Emoji with English captions, from checkouts of googlefonts/noto-emoji and unicode-org/cldr-json.

    Parameters
    ----------
    noto
        Checkout of googlefonts/noto-emoji.
    cldr
        Checkout of unicode-org/cldr-json.
    pixels
        Size of the drawings: 32, 72, 128 or 512.
    """
    print_built(sources.build_emoji(noto=noto, cldr=cldr, pixels=pixels, **vars(splits), **vars(target)))


@app.command
def regions(folder: Path, *, target: Target, skip_incomplete: SkipIncomplete = False) -> None:
    """Precomputed region features: {split}_ims.npy and {split}_caps.txt with five captions per image.

    Parameters
    ----------
    folder
        Where these files lie.
    """
    print_built(sources.build_regions(folder, skip_incomplete=skip_incomplete, **vars(target)))


@app.command
def tiles(
    folder: Path, *, target: Target, grid: int = 4, side: int = 12, skip_incomplete: SkipIncomplete = False
) -> None:
    """Regions without a detector: the pictures of a data set cut into tiles, whose pixels are the features.

    Parameters
    ----------
    folder
        Data set of pictures, as the other sources write it.
    grid
        Tiles along a side of the picture: grid × grid regions.
    side
        Pixels along a side of a tile: 3 × side × side features.
    """
    print_built(sources.build_tiles(folder, grid=grid, side=side, skip_incomplete=skip_incomplete, **vars(target)))


@app.command
def shuffled(folder: Path, *, target: Target, fraction: float, seed: int = 0) -> None:
    """For experiments alone: a data set some of whose training captions have changed places with each other.

    Parameters
    ----------
    folder
        Data set, as the other sources write it; val and test are copied as they are.
    fraction
        Part of the training captions that change places: 0.2, 0.4, …
    seed
        Another seed picks others.
    """
    print_built(sources.build_shuffled(folder, fraction=fraction, seed=seed, **vars(target)))


@app.command(name="img2dataset")
def img2dataset(
    *shards: str, out: Path, split: str, margin_columns: MarginColumns = (), overwrite: bool = False
) -> None:
    """Index img2dataset shards where they lie, without copying them, as one split: OUT/SPLIT.

    Parameters
    ----------
    shards
        Folders, tar files or quoted glob patterns.
    out
        Folder of the data set.
    split
        The split these shards are: train, val, test or a name of your own.
    overwrite
        Replace this split if it is there already.
    """
    print_built(
        sources.build_img2dataset(*shards, out=out, split=split, margin_columns=margin_columns, overwrite=overwrite)
    )
