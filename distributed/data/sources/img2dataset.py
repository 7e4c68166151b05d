"""Shards as img2dataset writes them (``{key}.jpg``, ``.txt``, ``.json``): indexed where they lie, not copied."""

from collections.abc import Sequence
from pathlib import Path

from allpairs.errors import UserError
from distributed.data.columns import with_columns
from distributed.data.manifest import Manifest, shard_path
from distributed.data.shards import TruncatedShardError, check_name
from distributed.data.writer import write_manifest


def find_shards(sources: Sequence[str]) -> list[Path]:
    """Return the tar files that folders, files and glob patterns name, sorted and without duplicates.

    Raises:
        UserError: a pattern that finds nothing, or that is a command or an address; no pattern at all.
    """
    files: set[Path] = set()
    if not sources:
        raise UserError("no shards given: name folders, tar files or quoted glob patterns")
    for source in sources:
        path = shard_path(source, Path.cwd())
        try:
            found = _find(path)
        except (OSError, ValueError) as error:
            raise UserError(f"{source}: cannot be looked for ({error})") from None
        if not found:
            raise UserError(f"{source}: no shard (*.tar) there")
        for file in found:
            check_name(file)
        files.update(found)
    return sorted(files)


def _find(path: Path) -> list[Path]:
    if path.is_dir():
        return list(path.glob("*.tar"))
    if path.is_file():
        return [path]
    anchor = Path(path.anchor)
    return [file for file in anchor.glob(path.relative_to(anchor).as_posix()) if file.is_file()]


def index_shards(
    folder: Path, files: Sequence[Path], *, name: str, split: str, margin_columns: Sequence[str] = ()
) -> Manifest:
    """Write manifest and index of `files` into the new folder.

    Raises:
        UserError: a shard is cut off or has something in its middle that is no member, a sample has no usable margin in
            one of `margin_columns`, or no shard has a sample.
    """
    folder.mkdir(exist_ok=True)
    try:
        manifest = write_manifest(
            folder,
            files,
            name=name,
            split=split,
            source=with_columns({"kind": "img2dataset"}, margin_columns),
            kind="image",
            text="whole",
            relative=False,
        )
    except TruncatedShardError as error:
        raise UserError(f"{error}; fetch this shard again or leave it out") from error
    if not manifest.samples:
        more = f" and {len(files) - 1} more" if files[1:] else ""
        raise UserError(f"{files[0]}{more}: nothing to build, no sample in it")
    return manifest
