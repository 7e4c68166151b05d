"""Looking for everything that would go wrong in training, shard by shard, before it does."""

from array import array
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from allpairs.hashes import sha256
from distributed.data.columns import columns_of, facts_in, margins_in
from distributed.data.dataset import CAUSES, BadSampleError
from distributed.data.images import decode_image, decode_regions
from distributed.data.index import parse_captions, read_member
from distributed.data.manifest import INDEX, MANIFEST, Manifest, Shard, shard_path
from distributed.data.pictures import NO_PICTURE, SHOWN, Pictures, Wordless, fingerprint, repeated, shared
from distributed.data.shards import REGION_SUFFIX, ShardSample, TruncatedShardError, readable, walk_shard
from distributed.data.texts import SplitTexts

# Per shard: the column of the report and what it counts.
SHARD_PROBLEMS = (*CAUSES, "duplicate keys", "unusable margins")
_SIDE = 64
"""Pictures are decoded to this side, by the function that training decodes them with: whether they can be does not
depend on it."""


@dataclass
class ShardReport:
    """What one shard holds and what is wrong with it."""

    file: str
    samples: int = 0
    problems: Counter[str] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)
    examples: dict[str, str] = field(default_factory=dict)


@dataclass
class ValidationReport:
    """What `validate` found in one folder.

    Attributes:
        folder: what was looked at.
        samples: in all shards.
        shards: one report each.
        faults: what is wrong with the folder as a whole.
        notes: worth knowing, but no fault.
        pictures: the fingerprints of its pictures.
    """

    folder: str
    samples: int
    shards: list[ShardReport]
    faults: list[str]
    notes: list[str]
    pictures: Pictures

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.faults and not any(shard.faults or shard.problems for shard in self.shards)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        shards = [{**vars(shard), "problems": dict(shard.problems)} for shard in self.shards]
        facts = {name: value for name, value in vars(self).items() if name != "pictures"}
        return {**facts, "shards": shards, "ok": self.ok}


def validate_folders(folders: Sequence[Path], *, world: int, max_image_pixels: int) -> list[ValidationReport]:
    """Check each of `folders`, the splits of one data set; a picture in two of them is a fault of the later one.

    Raises:
        UserError: a manifest cannot be read.
    """
    reports: list[ValidationReport] = []
    for folder in folders:
        report = validate_folder(folder, world=world, max_image_pixels=max_image_pixels)
        for earlier in reports:
            report.faults += shared([earlier.pictures, report.pictures])
        reports.append(report)
    return reports


def validate_folder(folder: Path, *, world: int, max_image_pixels: int) -> ValidationReport:
    """Check every sample of a folder of shards, with or without a manifest.

    Raises:
        UserError: the manifest itself cannot be read.
    """
    manifest = Manifest.read(folder) if (folder / MANIFEST).exists() else None
    if manifest is None:
        files: list[tuple[Path, Shard | None]] = [(file, None) for file in sorted(folder.glob("*.tar"))]
    else:
        files = [(shard_path(shard.file, folder), shard) for shard in manifest.shards]
    split = manifest.split if manifest else readable(folder.resolve().name)
    looked = _Look(manifest, max_image_pixels, Wordless(split), SplitTexts(split))
    shards = [looked.check_shard(file, shard) for file, shard in files]
    samples = sum(shard.samples for shard in shards)
    faults = _check_folder(folder, manifest) + looked.faults()
    if samples < world:
        faults.append(f"{samples} samples cannot feed {world} ranks")
    key = looked.keys.__getitem__
    pictures = Pictures(split, np.array(looked.prints, dtype=np.uint64), key)
    notes = [] if manifest else [f"no {MANIFEST}: contents checked, hashes not"]
    notes += [line for line in (repeated(pictures), looked.wordless.note(), looked.texts.note(key)) if line]
    if samples % world:
        notes.append(
            f"{samples:,} samples over {world} ranks: {samples % world} ranks read one more per epoch; the reader cuts "
            "every batch evenly, so all take the same number of steps"
        )
    return ValidationReport(readable(folder), samples, shards, faults, notes, pictures)


def _check_folder(folder: Path, manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    index = folder / INDEX
    if not index.is_file():
        return [f"{INDEX} is missing"]
    return [] if sha256(index) == manifest.index_sha256 else [f"{INDEX} is not the one the manifest was written with"]


@dataclass
class _Look:
    """Looks at one shard after the other and remembers what has to be compared over all of them."""

    manifest: Manifest | None
    max_pixels: int
    wordless: Wordless
    texts: SplitTexts
    keys: list[str] = field(default_factory=list)
    prints: array = field(default_factory=lambda: array("Q"))
    seen: dict[str, str] = field(default_factory=dict)
    """Where each key was met first."""
    kinds: dict[str, tuple[int, str]] = field(default_factory=dict)
    """How many samples are images, or regions of one shape, and the first of them."""

    def check_shard(self, file: Path, expected: Shard | None) -> ShardReport:
        """Check one shard: against what the manifest says of it, if there is one, and every sample."""
        report = ShardReport(readable(file))
        if not file.is_file():
            report.faults.append("does not exist")
            return report
        try:
            if expected is not None and (file.stat().st_size != expected.bytes or sha256(file) != expected.sha256):
                report.faults.append("not the bytes the manifest was written for")
            with file.open("rb") as stream:
                for sample in walk_shard(file):
                    report.samples += 1
                    for cause in self._problems(sample, stream.fileno(), file.name):
                        _count(report, cause, sample.key)
                    if unusable := self._unusable_margins(sample, stream.fileno()):
                        _count(report, "unusable margins", f"{sample.key} ({unusable})")
                    if sample.key in self.seen:
                        _count(report, "duplicate keys", f"{sample.key} (also in {self.seen[sample.key]})")
                    self.seen.setdefault(sample.key, file.name)
            if not report.samples:
                report.faults.append("holds no sample")
        except TruncatedShardError as error:
            report.faults.append(error.reason)
        except OSError as error:
            report.faults.append(f"cannot be read ({error.strerror})")
        if expected is not None and report.samples != expected.samples:
            report.faults.append(f"{report.samples} samples, the manifest says {expected.samples}")
        return report

    def faults(self) -> list[str]:
        """Say what does not fit together: a batch is one array, so one kind and one shape of regions."""
        if len(self.kinds) < 2:
            return []
        commonest = sorted(self.kinds.items(), key=lambda item: -item[1][0])
        found = ", ".join(f"{name} in {count:,} samples (first {where})" for name, (count, where) in commonest[:SHOWN])
        more = f", and {len(commonest) - SHOWN:,} other shapes" if commonest[SHOWN:] else ""
        return [f"samples that fit in no batch together: {found}{more}"]

    def _unusable_margins(self, sample: ShardSample, descriptor: int) -> str | None:
        """Say what is wrong with the margins of a sample that could be trained on."""
        columns = columns_of(self.manifest.source) if self.manifest else ()
        if not columns or sample.image is None or not (captions := self._captions(sample, descriptor)):
            return None
        try:
            facts = facts_in(read_member(descriptor, sample.facts))
            for column in columns:
                margins_in(facts, column, len(captions))
        except ValueError as error:
            return str(error)
        return None

    def _captions(self, sample: ShardSample, descriptor: int) -> list[str] | None:
        text = read_member(descriptor, sample.text)
        return parse_captions(text or b"", self.manifest.text if self.manifest else "lines")

    def _problems(self, sample: ShardSample, descriptor: int, shard: str) -> Iterator[str]:
        self.keys.append(sample.key)
        if sample.image is None:
            self.prints.append(NO_PICTURE)
            yield "missing image"
        else:
            data = read_member(descriptor, sample.image) or b""
            self.prints.append(fingerprint(data))
            try:
                if self.manifest.kind == "regions" if self.manifest else sample.suffix == REGION_SUFFIX:
                    kind = f"regions {list(decode_regions(data).shape)}"
                else:
                    decode_image(data, _SIDE, self.max_pixels)
                    kind = "images"
            except BadSampleError as bad:
                yield bad.cause
            else:
                count, first = self.kinds.get(kind, (0, f"{shard}: {sample.key}"))
                self.kinds[kind] = (count + 1, first)
        captions: list[str] | None = []
        if sample.text is None:
            yield "missing text"
        else:
            captions = self._captions(sample, descriptor)
            if captions is None:
                yield "text not UTF-8"
            elif not captions:
                yield "empty captions"
            else:
                self.wordless.add(sample.key, captions)
        self.texts.add(captions or [])


def _count(report: ShardReport, cause: str, example: str) -> None:
    report.problems[cause] += 1
    report.examples.setdefault(cause, example)
