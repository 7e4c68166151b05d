"""Building a data set: every source becomes one folder per split, whole or not at all, and a table of what is there."""

import errno
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
from rich.text import Text

from allpairs.errors import UserError
from allpairs.terminal import visible
from distributed.data.dataset import open_dataset
from distributed.data.draws import Purpose, permutation
from distributed.data.manifest import SPLIT_ORDER, Kind, Manifest, split_folders
from distributed.data.pictures import SHOWN, Pictures, Wordless, repeated, shared
from distributed.data.shards import readable
from distributed.data.texts import SplitTexts
from distributed.data.writer import Sample, new_folder, write_split


@dataclass(frozen=True)
class Built:
    """What a build has written.

    Attributes:
        out: the folder.
        manifests: one per split.
        left_out: what of the source was not written, one line per cause with the first examples.
    """

    out: Path
    manifests: list[Manifest]
    left_out: list[str] = field(default_factory=list)

    def without(self, incomplete: "Incomplete") -> "Built":
        """Return the same with what was left out."""
        return replace(self, left_out=incomplete.lines())


def write_splits(
    out: Path,
    splits: Mapping[str, Iterable[Sample]],
    *,
    name: str,
    source: Mapping[str, Any],
    overwrite: bool,
    shard_samples: int,
    kind: Kind = "image",
) -> Built:
    """Write `out`/{split} for each split.

    Raises:
        UserError: `out` exists and `overwrite` is off, or the source is broken or holds nothing; then nothing is left
            behind.
    """
    if shard_samples < 1:
        raise UserError(f"--shard-samples {shard_samples}: at least 1")
    if not splits:
        raise UserError(f"{name}: nothing to build, the source holds no sample")
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
    """Print one row per split, what was left out, and what is odd about the pictures and captions."""
    table = Table("split", "samples", "captions", "shards", "MB", title=Text(visible(built.out)), title_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for manifest in built.manifests:
        megabytes = sum(shard.bytes for shard in manifest.shards) / 1e6
        row = (manifest.samples, manifest.captions, len(manifest.shards))
        table.add_row(manifest.split, *(f"{value:,}" for value in row), f"{megabytes:,.1f}")
    console = Console()
    console.print(table)
    for line in built.left_out:
        console.print(f"left out: {visible(line)}", markup=False, highlight=False, soft_wrap=True)
    for line in _oddities(built.out):
        console.print(f"note: {visible(line)}", markup=False, highlight=False, soft_wrap=True)


def _oddities(out: Path) -> list[str]:
    """Compare all splits of `out`, also one that was there before, by their indexes alone."""
    lines: list[str] = []
    parts: list[Pictures] = []
    for folder in split_folders(out):
        try:
            dataset = open_dataset(folder)
        except UserError as error:
            lines.append(f"not compared with {folder.name}: {error}")
            continue
        wordless, texts = Wordless(dataset.manifest.split), SplitTexts(dataset.manifest.split)
        for key, captions in dataset.captions_by_key():
            wordless.add(key, captions)
            texts.add(captions)
        parts.append(dataset.pictures(dataset.manifest.split))
        lines += [line for line in (repeated(parts[-1]), wordless.note(), texts.note(dataset.key)) if line]
    return lines + shared(parts)


def _shown(samples: Iterable[Sample], split: str) -> Iterator[Sample]:
    console = Console(stderr=True)
    yield from track(samples, description=split, console=console, transient=True, disable=not console.is_terminal)


class Incomplete:
    """Strict by default; with `skip` it counts what the sources leave out, and remembers the first of each cause.

    Attributes:
        counts: samples left out, by cause.
    """

    def __init__(self, *, skip: bool) -> None:
        self._skip = skip
        self.counts: Counter[str] = Counter()
        self._captions: Counter[str] = Counter()
        self._first: dict[str, list[str]] = {}

    def report(self, cause: str, detail: str, *, captions: int = 0) -> None:
        """Count one sample that is left out, and its captions, or raise UserError when none may be."""
        if not self._skip:
            raise UserError(
                f"{readable(detail)}: {cause}; complete it, or leave such samples out with --skip-incomplete"
            )
        self.note(cause, detail, captions=captions)

    def note(self, cause: str, detail: str, *, captions: int = 0) -> None:
        """Count something that is left out whatever was asked for: half a pair that is no mistake."""
        self.counts[cause] += 1
        self._captions[cause] += captions
        first = self._first.setdefault(cause, [])
        if len(first) < SHOWN:
            first.append(readable(detail))

    def lines(self) -> list[str]:
        """Return one line per cause: how many, how many captions went with them, and which were the first."""
        lines = []
        for cause, count in sorted(self.counts.items()):
            lost = self._captions[cause]
            captions = f" (and {lost:,} caption{'s' if lost > 1 else ''})" if lost else ""
            first = ", ".join(self._first[cause]) + (", …" if count > SHOWN else "")
            lines.append(f"{count:,}, {cause}{captions}: {first}")
        return lines


def read_inside(file: Path, folder: Path, *, follow_symlinks: bool) -> bytes | None:
    """Return the bytes of a `file` of the source `folder`; None when there is no such file (or it is not a plain one).

    Raises:
        UserError: it cannot be read, or a link leads out of the folder: what somebody else packed could name any file
            of this machine. `follow_symlinks` allows it.
    """
    try:
        if not file.is_file():
            return None
        if not follow_symlinks and not (target := file.resolve()).is_relative_to(folder.resolve()):
            raise UserError(
                f"{readable(file)}: a link that leads out of {folder}, to {readable(target)}; "
                "--follow-symlinks takes what it leads to"
            )
        return file.read_bytes()
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            return None
        raise UserError(f"{readable(file)}: cannot be read ({error.strerror})") from None


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
    digests = [hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest() for name in names]
    ids = np.array([int.from_bytes(digest[:8], "big") for digest in digests], dtype=np.uint64)
    order = permutation(seed, 0, Purpose.SPLIT, ids).tolist()
    tests, vals = round(test * len(names)), round(val * len(names))
    parts = {"train": order[tests + vals :], "val": order[tests : tests + vals], "test": order[:tests]}
    return {split: [names[i] for i in sorted(part)] for split, part in parts.items() if part}
