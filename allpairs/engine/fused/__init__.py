"""Fused Triton tiles: scores, mask and what is wanted of them in one kernel, so that no tile of scores meets memory.

- `kernels`: the Triton kernels.
- `instances`: which items can be of one instance, as the kernels ask it.
- `launch_table`: how each kernel is launched.
- `launches`: each of them as a function of tensors.
- `tiles`: what the walk of `allpairs.engine.tiled` asks of a tile, answered by these.

Importing this package does not import Triton; all but `launch_table` and `tiles` do.
"""

import importlib.util
import os

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
"""What the kernels compare; float64 has no fast products."""


def usable(embeddings: Tensor) -> bool:
    """Return whether the kernels can run on `embeddings`: their type, their device and Triton allow it.

    That is a CUDA device of compute capability 8 or more, or, for tests, a CPU under Triton's interpreter
    (TRITON_INTERPRET=1 from before Triton is first imported). Triton is imported only if the rest holds.
    """
    if embeddings.dtype not in DTYPES or importlib.util.find_spec("triton") is None:
        return False
    if embeddings.is_cuda:
        return torch.version.hip is None and torch.cuda.get_device_capability(embeddings.device) >= (8, 0)
    if embeddings.device.type != "cpu":
        return False
    if not os.environ.get("TRITON_INTERPRET"):
        return False
    from allpairs.engine.fused import kernels

    return kernels.INTERPRETED
