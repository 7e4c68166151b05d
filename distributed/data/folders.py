"""Which data set folders a path means: itself, or its splits."""

from pathlib import Path

from allpairs.errors import UserError
from distributed.data.build import SPLIT_ORDER
from distributed.data.manifest import MANIFEST


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
