"""torch.compile of the encoder (`train.compile`): the same computation in fewer, fused kernels.

The encoder is compiled in place, so that its weights keep their names, and where it is called as a module alone:
evaluations and saved models go on as they are. Batch size and caption length are left open from the start, so that a
ragged last batch is no reason to compile again, and what runs does not depend on what came before. Dropout draws from
torch's own generators, in the order of the plain encoder: it stays a function of (seed, step), and the same one.
"""

import os
import shutil

import torch
from torch import Tensor

from allpairs.errors import UserError
from allpairs.models import DualEncoder

BACKEND = "inductor"
NOTE = "train.compile: compiling the encoder, forward and backward, at the first steps: seconds to minutes"


def compile_encoder(encoder: DualEncoder) -> None:
    """Have calls of `encoder` run compiled code, which is made at the first ones.

    Raises:
        UserError: this machine has no C++ compiler.
    """
    options: dict[str, str | int | bool] | None = None
    if BACKEND == "inductor":
        _require_compiler()
        options = {"fallback_random": True}
    encoder.compile(backend=BACKEND, options=options)


def leave_sizes_open(images: Tensor, tokens_cL: Tensor, lengths_c: Tensor) -> None:
    """Tell the compiler which sizes change from batch to batch: images, captions and their length."""
    mark = torch._dynamo.maybe_mark_dynamic
    for tensor, dimension in ((images, 0), (tokens_cL, 0), (tokens_cL, 1), (lengths_c, 0)):
        mark(tensor, dimension)


def _require_compiler() -> None:
    compiler = os.environ.get("CXX", "g++")  # what inductor looks for
    if shutil.which(compiler) is None:
        raise UserError(
            f"train.compile=true: torch.compile finds no C++ compiler ({compiler}) on this machine: install g++, or "
            "name another in the variable CXX; accepted without one is false"
        )
