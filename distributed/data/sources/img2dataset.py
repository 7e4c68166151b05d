"""Shards as img2dataset writes them (``{key}.jpg``, ``.txt``, ``.json``): indexed where they lie, not copied."""

from collections.abc import Sequence
from pathlib import Path

from allpairs.errors import UserError
from distributed.data.manifest import Manifest, shard_path
from distributed.data.shards import TruncatedShardError
from distributed.data.writer import write_manifest


def find_shards(sources: Sequence[str]) -> list[Path]:
    """Return the tar files that folders, files and glob patterns name, sorted and without duplicates.

    Raises:
        UserError: a pattern that finds nothing, or that is a command or an address.
    """
    files: set[Path] = set()
    for source in sources:
        path = shard_path(source, Path.cwd())
        if path.is_dir():
            found = list(path.glob("*.tar"))
        elif path.is_file():
            found = [path]
        else:
            anchor = Path(path.anchor)
            found = [file for file in anchor.glob(path.relative_to(anchor).as_posix()) if file.is_file()]
        if not found:
            raise UserError(f"{source}: no shard (*.tar) there")
        files.update(found)
    return sorted(files)


def index_shards(folder: Path, files: Sequence[Path], *, name: str, split: str) -> Manifest:
    """Write manifest and index of `files` into the new folder. Raises UserError for a shard that is cut off."""
    folder.mkdir(exist_ok=True)
    try:
        return write_manifest(
            folder,
            files,
            name=name,
            split=split,
            source={"kind": "img2dataset"},
            kind="image",
            text="whole",
            relative=False,
        )
    except TruncatedShardError as error:
        raise UserError(f"{error}; fetch this shard again or leave it out") from error
