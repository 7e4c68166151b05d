"""Looking for everything that would go wrong in training, shard by shard, before it does."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from distributed.data.dataset import BadSampleError
from distributed.data.images import decode_regions, open_image
from distributed.data.index import parse_captions
from distributed.data.manifest import INDEX, MANIFEST, Manifest, Shard, sha256, shard_path
from distributed.data.shards import REGION_SUFFIX, ShardSample, Span, TruncatedShardError, walk_shard

# Per shard: the column of the report and what it counts.
SHARD_PROBLEMS = (
    "missing image",
    "missing text",
    "undecodable image",
    "oversized image",
    "undecodable regions",
    "text not UTF-8",
    "empty captions",
    "duplicate keys",
)


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
    """

    folder: str
    samples: int
    shards: list[ShardReport]
    faults: list[str]
    notes: list[str]

    @property
    def ok(self) -> bool:
        """Whether nothing at all is wrong."""
        return not self.faults and not any(shard.faults or shard.problems for shard in self.shards)

    def as_dict(self) -> dict[str, Any]:
        """Return the report as JSON-ready values."""
        shards = [{**vars(shard), "problems": dict(shard.problems)} for shard in self.shards]
        return {**vars(self), "shards": shards, "ok": self.ok}


def validate_folder(folder: Path, *, world: int, max_image_pixels: int) -> ValidationReport:
    """Check every sample of a folder of shards, with or without a manifest.

    Raises:
        UserError: the manifest itself cannot be read.
    """
    manifest = Manifest.read(folder) if (folder / MANIFEST).is_file() else None
    if manifest is None:
        files: list[tuple[Path, Shard | None]] = [(file, None) for file in sorted(folder.glob("*.tar"))]
    else:
        files = [(shard_path(shard.file, folder), shard) for shard in manifest.shards]
    seen: dict[str, str] = {}
    text = manifest.text if manifest else "lines"
    shards = [_check_shard(file, shard, seen, text, max_image_pixels) for file, shard in files]
    samples = sum(shard.samples for shard in shards)
    faults = _check_folder(folder, manifest)
    if samples < world:
        faults.append(f"{samples} samples cannot feed {world} ranks")
    notes = [] if manifest else [f"no {MANIFEST}: contents checked, hashes not"]
    if samples % world:
        notes.append(
            f"{samples:,} samples over {world} ranks: {samples % world} ranks read one more per epoch; the reader cuts "
            "every batch evenly, so all take the same number of steps"
        )
    return ValidationReport(str(folder), samples, shards, faults, notes)


def _check_folder(folder: Path, manifest: Manifest | None) -> list[str]:
    if manifest is None:
        return []
    index = folder / INDEX
    if not index.is_file():
        return [f"{INDEX} is missing"]
    return [] if sha256(index) == manifest.index_sha256 else [f"{INDEX} is not the one the manifest was written with"]


def _check_shard(file: Path, expected: Shard | None, seen: dict[str, str], text: str, max_pixels: int) -> ShardReport:
    report = ShardReport(str(file))
    if not file.is_file():
        report.faults.append("does not exist")
        return report
    if expected is not None and (file.stat().st_size != expected.bytes or sha256(file) != expected.sha256):
        report.faults.append("not the bytes the manifest was written for")
    try:
        with file.open("rb") as stream:
            for sample in walk_shard(file):
                report.samples += 1
                for cause in _sample_problems(sample, stream.fileno(), text, max_pixels):
                    _count(report, cause, sample.key)
                if sample.key in seen:
                    _count(report, "duplicate keys", f"{sample.key} (also in {seen[sample.key]})")
                seen.setdefault(sample.key, file.name)
    except TruncatedShardError as error:
        report.faults.append(error.reason)
    if expected is not None and report.samples != expected.samples:
        report.faults.append(f"{report.samples} samples, the manifest says {expected.samples}")
    return report


def _sample_problems(sample: ShardSample, descriptor: int, text: str, max_pixels: int) -> Iterator[str]:
    if sample.image is None:
        yield "missing image"
    else:
        data = _read(descriptor, sample.image)
        try:
            if sample.suffix == REGION_SUFFIX:
                decode_regions(data)
            else:
                open_image(data, max_pixels).load()
        except BadSampleError as bad:
            yield bad.cause
        except Exception:  # a damaged image can make a decoder raise anything
            yield "undecodable image"
    if sample.text is None:
        yield "missing text"
    else:
        captions = parse_captions(_read(descriptor, sample.text), text)
        if captions is None:
            yield "text not UTF-8"
        elif not captions:
            yield "empty captions"


def _read(descriptor: int, span: Span) -> bytes:
    return os.pread(descriptor, span.size, span.offset)


def _count(report: ShardReport, cause: str, example: str) -> None:
    report.problems[cause] += 1
    report.examples.setdefault(cause, example)
