"""open_clip's ClipLoss from its installed package, whose own import would drag in torchvision."""

import importlib.util
from pathlib import Path
from typing import Any


def load() -> Any:
    """Return the class `ClipLoss`.

    Raises:
        ModuleNotFoundError: open_clip_torch is not installed (`pip install --no-deps open_clip_torch`).
    """
    package = importlib.util.find_spec("open_clip")
    if package is None or package.origin is None:
        raise ModuleNotFoundError("open_clip_torch is not installed: pip install --no-deps open_clip_torch")
    spec = importlib.util.spec_from_file_location("open_clip_loss", Path(package.origin).with_name("loss.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.ClipLoss
