"""True float32 scores: no TF32, no bfloat16 matrix products, no autocast, whatever the caller had switched on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def exact_float32(device: torch.device) -> Iterator[None]:
    """Compute float32 matrix products in IEEE float32 inside the block, without gradients; restore the settings after.

    bfloat16 scores tie a third of the queries of a 5K gallery, and TF32 keeps the same ten bits of mantissa as half.
    """
    backends = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision
