"""Building a data set: every source becomes one folder per split, whole or not at all, and a table of what is there."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from allpairs.errors import UserError
from distributed.data.draws import Purpose, permutation
from distributed.data.manifest import SPLIT_ORDER, Manifest
from distributed.data.writer import Sample, new_folder, write_split


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


class Incomplete:
    """Strict by default; with `skip` it counts what the sources leave out.

    Attributes:
        counts: samples left out, by cause.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.counts: Counter[str] = Counter()

    def report(self, cause: str, detail: str) -> None:
        """Count one sample that is left out, or raise UserError when none may be."""
        if not self._skip:
            raise UserError(f"{detail}: {cause}; complete it, or leave such samples out with --skip-incomplete")
        self.counts[cause] += 1


def split_by_seed(names: Sequence[str], *, seed: int, val: float, test: float) -> dict[str, list[str]]:
    """Give each of `names` to train, val or test by a seeded hash of the name; the order within a split is kept.

    Args:
        names: what to split, without duplicates.
        seed: another seed is another split.
        val: fraction of the names that is for validation.
        test: fraction for testing; train gets the rest.

    Raises:
        UserError: fractions that leave nothing to train on.
    """
    if not (val >= 0 and test >= 0 and val + test < 1):
        raise UserError(f"--val {val:g} and --test {test:g}: both at least 0 and together below 1")
    ids = np.array(
        [int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") for name in names], dtype=np.uint64
    )
    order = permutation(seed, 0, Purpose.SPLIT, ids).tolist()
    tests, vals = round(test * len(names)), round(val * len(names))
    parts = {"train": order[tests + vals :], "val": order[tests : tests + vals], "test": order[:tests]}
    return {split: [names[i] for i in sorted(part)] for split, part in parts.items() if part}
