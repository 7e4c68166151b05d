"""Building a data set: every source becomes one folder per split, whole or not at all, and a table of what is there."""

from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from allpairs.errors import UserError
from distributed.data.manifest import MANIFEST, Manifest
from distributed.data.sources.incomplete import Incomplete
from distributed.data.writer import Sample, new_folder, write_split

SPLIT_ORDER = ("train", "val", "test")


def build(
    out: Path,
    splits: Mapping[str, Iterable[Sample]],
    *,
    name: str,
    source: Mapping[str, Any],
    incomplete: Incomplete,
    overwrite: bool,
    shard_samples: int,
    kind: str = "image",
) -> None:
    """Write `out`/{split} for each split and print what was written.

    Raises:
        UserError: `out` exists and `overwrite` is off, or the source is broken; then nothing is left behind.
    """
    if shard_samples < 1:
        raise UserError(f"--shard-samples {shard_samples}: at least 1")
    manifests = []
    with new_folder(out, overwrite=overwrite) as fresh:
        for split in sorted(splits, key=SPLIT_ORDER.index):
            manifest = write_split(
                fresh / split,
                _shown(splits[split], split),
                name=name,
                split=split,
                source=source,
                kind=kind,
                shard_samples=shard_samples,
            )
            manifests.append(manifest)
    print_built(out, manifests, incomplete)


def print_built(out: Path, manifests: Iterable[Manifest], incomplete: Incomplete | None = None) -> None:
    """Print one row per split, and what was left out."""
    table = Table("split", "samples", "captions", "shards", "MB", title=f"{out}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for manifest in manifests:
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        row = (manifest.samples, manifest.captions, len(manifest.shards))
        table.add_row(manifest.split, *(f"{value:,}" for value in row), f"{megabytes:,.1f}")
    console = Console()
    console.print(table)
    for cause, count in sorted((incomplete.counts if incomplete else {}).items()):
        console.print(f"left out: {count:,} ({cause})")


def split_folders(folder: Path) -> list[Path]:
    """Return the data set folders under `folder`: itself when it holds a manifest or shards, otherwise its splits.

    Raises:
        UserError: there is none.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    if (folder / MANIFEST).is_file() or any(folder.glob("*.tar")):
        return [folder]
    splits = sorted({file.parent for file in (*folder.glob(f"*/{MANIFEST}"), *folder.glob("*/*.tar"))})
    if not splits:
        raise UserError(f"{folder}: neither {MANIFEST} nor shards (*.tar), in it or in its subfolders")
    return sorted(splits, key=lambda path: (SPLIT_ORDER.index(path.name) if path.name in SPLIT_ORDER else 9, path.name))


def _shown(samples: Iterable[Sample], split: str) -> Iterator[Sample]:
    console = Console(stderr=True)
    yield from track(samples, description=split, console=console, transient=True, disable=not console.is_terminal)
