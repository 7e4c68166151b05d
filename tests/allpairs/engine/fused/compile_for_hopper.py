"""Compile every kernel for compute capability 9.0, which needs no GPU; print what the code uses as JSON.

    python compile_for_hopper.py

In a process of its own, since kernels that are interpreted cannot be compiled.
"""

import json
import os
import re
import subprocess

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import CUDABackend
from triton.compiler import ASTSource
from triton.runtime.jit import create_function_from_signature

from allpairs.engine.fused import kernels, launches

POINTERS = {
    "query_ids_R": "*i64",
    "candidate_ids_C": "*i64",
    "index_N": "*i64",
    "row_columns_KR": "*i32",
    "column_rows_KC": "*i32",
    "indices_KN": "*i32",
}
NUMBERS = dict.fromkeys(("scale", "scale2", "bias", "factor"), "fp32")
NUMBERS |= dict.fromkeys(("R", "C", "K", "N", "row_stride"), "i32")
SHIFTED = ("query_ids_R", "candidate_ids_C", "row_shift_R", "column_shift_C", "bias_N")
"""Rows of one rank, which may begin anywhere in those of all."""
BLOCKS = ("soft_excess", "hardest", "soft_weights", "sigmoid_sums", "sigmoid_weights")
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def compiled(kernel: str, dtype: str) -> dict[str, object]:
    launch = launches.launch_on(9, DTYPES[dtype], sigmoid=kernel.startswith("sigmoid"))
    values = {"BLOCK_R": launch.rows, "BLOCK_C": launch.columns, "BLOCK_D": launch.depth, "BLOCK_K": 32, "BLOCK_N": 64}
    values |= {"GROUP": 8, "D": 768, "WIDEN": False, "SHARE": dtype != "fp32"}
    blocks = {"queries": launch.rows, "candidates": launch.columns}
    function = getattr(kernels, kernel)
    signature = {}
    for name in function.arg_names:
        if name in values:
            signature[name] = "constexpr"
        elif name in blocks:
            signature[name] = f"tensordesc<{dtype}[{blocks[name]}, {launch.depth}]>"
        else:
            signature[name] = NUMBERS.get(name) or POINTERS.get(name) or ("*" + dtype if name == "out_RC" else "*fp32")
    constants = {name: values[name] for name in signature if name in values}
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    # As launches give them: whole tensors begin at a multiple of 16 bytes, and so do the lines of W.
    even = [n for n, name in enumerate(signature) if name == "row_stride" or signature[name].startswith("*")]
    attributes = {(n,): [["tt.divisibility", 16]] for n in even if function.arg_names[n] not in SHIFTED}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx = result.asm["ptx"]
    return {
        "kernel": kernel,
        "dtype": dtype,
        "shared": result.metadata.shared,
        "spilled": spilled(ptx),
        "wgmma": "wgmma.mma_async" in ptx,
        "tf32": "tf32" in ptx,
        "copy_engine": "cp.async.bulk.tensor" in ptx,
    }


def spilled(ptx: str) -> int:
    """Return how many bytes of registers do not find a place on the chip."""
    assembler = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "-o", os.devnull, "/dev/stdin"]
    told = subprocess.run(assembler, input=ptx, text=True, capture_output=True, check=True).stderr
    return sum(int(size) for size in re.findall(r"(\d+) bytes spill", told))


def compilations(kernel: str) -> int:
    """Return how many versions of `kernel` even and ragged batches, at any place in memory, would compile."""
    function = getattr(kernels, kernel)
    bind = create_function_from_signature(function.signature, function.params, CUDABackend(GPUTarget("cuda", 90, 32)))
    versions = set()
    for number, shift in ((65536, 0), (65535, 1), (1, 3), (4096, 2), (17, 0)):
        arguments: dict[str, object] = {}
        for name in function.arg_names:
            if NUMBERS.get(name) == "i32":
                arguments[name] = 65536 if name == "row_stride" else number
            elif name in NUMBERS:
                arguments[name] = 0.5
            elif name.isupper():
                arguments[name] = 16
            elif name in SHIFTED:
                arguments[name] = torch.empty(64, dtype=torch.int64 if "ids" in name else torch.float32)[shift:]
            else:
                arguments[name] = torch.empty(64)
        versions.add(str(bind(**arguments)[1]))
    return len(versions)


def main() -> None:
    found = [compiled(kernel, "bf16") for kernel in BLOCKS]
    found += [compiled(kernel, "fp32") for kernel in ("soft_excess", "merge_excess", "merge_hardest")]
    kinds = (*BLOCKS, "merge_excess", "merge_hardest")
    print(json.dumps({"compiled": found, "versions": {kernel: compilations(kernel) for kernel in kinds}}))


if __name__ == "__main__":
    main()
