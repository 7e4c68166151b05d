"""Building a data set: every source becomes one folder per split, whole or not at all, and a table of what is there."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from allpairs.errors import UserError
from distributed.data.manifest import Manifest
from distributed.data.writer import Sample, new_folder, write_split

SPLIT_ORDER = ("train", "val", "test")


@dataclass(frozen=True)
class Built:
    """What a build has written.

    Attributes:
        out: the folder.
        manifests: one per split.
        left_out: samples of the source that were not written, by cause.
    """

    out: Path
    manifests: list[Manifest]
    left_out: Mapping[str, int] = field(default_factory=dict)

    def without(self, left_out: Mapping[str, int]) -> "Built":
        """Return the same with what was left out."""
        return replace(self, left_out=dict(left_out))


def write_splits(
    out: Path,
    splits: Mapping[str, Iterable[Sample]],
    *,
    name: str,
    source: Mapping[str, Any],
    overwrite: bool,
    shard_samples: int,
    kind: str = "image",
) -> Built:
    """Write `out`/{split} for each split.

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
    return Built(out, manifests)


def print_built(built: Built) -> None:
    """Print one row per split, and what was left out."""
    table = Table("split", "samples", "captions", "shards", "MB", title=f"{built.out}", title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for manifest in built.manifests:
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        row = (manifest.samples, manifest.captions, len(manifest.shards))
        table.add_row(manifest.split, *(f"{value:,}" for value in row), f"{megabytes:,.1f}")
    console = Console()
    console.print(table)
    for cause, count in sorted(built.left_out.items()):
        console.print(f"left out: {count:,} ({cause})")


def _shown(samples: Iterable[Sample], split: str) -> Iterator[Sample]:
    console = Console(stderr=True)
    yield from track(samples, description=split, console=console, transient=True, disable=not console.is_terminal)
