"""What the fused kernels take of a Hopper GPU, as the compiler reports it: needs Triton, but no GPU.

    python -m benchmarks.resources [--launch KERNEL=ROWSxCOLUMNSxDEPTH,WARPS,STAGES ...]

Compiled for compute capability 9.0a at D = 768, as `allpairs.engine.fused.launch_table` launches them or as `--launch`
says. "before load": barriers that all warps of a block pass before the first embeddings are asked for. "blocks": how
many a multiprocessor of 65,536 registers and 227 KiB holds at once. `--json` prints what the
tests check: the larger variants.
"""

import argparse
import json
import os
import re
import subprocess
import sys
from typing import Any, NamedTuple

import torch

from allpairs.engine.fused.launch_table import TABLE, Launch, launch_on, launching

SHARED = 227 * 1024
D = 768
POINTERS = {"index_N": "*i64"} | dict.fromkeys(
    (
        *("query_numbers_B", "query_ranges_G2", "candidate_numbers_B", "candidate_ranges_G2"),
        *("row_columns_KR", "column_rows_KC", "indices_KN"),
    ),
    "*i32",
)
SIZES = ("R", "C", "K", "N", "first_row", "first_column", "row_stride")
ANYWHERE = ("row_shift_R", "column_shift_C", "bias_N", "scale_1", "bias_1", "factor_1")
"""Rows of one rank, which may begin anywhere in those of all, and numbers."""
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MERGES = ("merge_excess", "merge_hardest")


class Resources(NamedTuple):
    """Of one kernel and variant."""

    kernel: str
    dtype: str
    masked: bool
    registers: int
    spilled: int
    """Bytes."""
    shared: int
    """Bytes."""
    before_load: int
    blocks: int
    wgmma: bool
    serialized: bool
    """Whether the compiler could not overlap a product with the next."""
    tf32: bool
    copy_engine: bool


def compiled(kernel: str, dtype: str, *, masked: bool) -> Resources:
    """Return what `kernel` takes for embeddings of `dtype`, with the code for items of one instance or without."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from allpairs.engine.fused import kernels

    over_blocks = kernel not in MERGES
    launch = launch_on(9, DTYPES[dtype], kernel) if over_blocks else Launch(0, 0, 0, warps=4, stages=3)
    values = {"BLOCK_R": launch.rows, "BLOCK_C": launch.columns, "BLOCK_D": launch.depth, "BLOCK_K": 32, "BLOCK_N": 64}
    values |= {"GROUP": launch.group, "D": D, "WIDEN": False, "MASKED": masked, "SHARE": dtype != "fp32"}
    blocks = {"queries": launch.rows, "candidates": launch.columns}
    function = getattr(kernels, kernel)
    signature: dict[str, str] = {}
    for name in function.arg_names:
        if name in values:
            signature[name] = "constexpr"
        elif name in blocks:
            signature[name] = f"tensordesc<{dtype}[{blocks[name]}, {launch.depth}]>"
        elif name in SIZES:
            signature[name] = "i32"
        else:
            signature[name] = POINTERS.get(name) or ("*" + dtype if name == "out_RC" else "*fp32")
    constants = {name: values[name] for name in signature if name in values}
    # As launches give them: whole tensors begin at a multiple of 16 bytes, and so do the lines of W.
    even = [n for n, name in enumerate(signature) if name == "row_stride" or signature[name].startswith("*")]
    attributes = {(n,): [["tt.divisibility", 16]] for n in even if function.arg_names[n] not in ANYWHERE}
    source = ASTSource(fn=function, signature=signature, constexprs=constants, attrs=attributes)
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    result = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    ptx, shared = result.asm["ptx"], result.metadata.shared
    told = _assembled(ptx)
    used = re.search(r"Used (\d+) registers", told)
    assert used is not None
    registers = int(used[1])
    load = ptx.find("cp.async.bulk.tensor")
    return Resources(
        kernel,
        dtype,
        masked,
        registers,
        sum(int(size) for size in re.findall(r"(\d+) bytes spill", told)),
        shared,
        len(re.findall(r"\b(?:bar|barrier)\.(?:cta\.)?sync", ptx[: max(load, 0)])),
        min(65536 // (registers * launch.warps * 32), SHARED // max(shared, 1), 64 // launch.warps),
        "wgmma.mma_async" in ptx,
        "serialized" in told,
        "tf32" in ptx,
        load >= 0,
    )


def _assembled(ptx: str) -> str:
    """Return what the assembler says of a kernel."""
    import triton

    assembler = [triton.knobs.nvidia.ptxas.path, "-v", "--gpu-name=sm_90a", "-o", os.devnull, "/dev/stdin"]
    return subprocess.run(assembler, input=ptx, text=True, capture_output=True, check=True).stderr


def compilations(kernel: str) -> int:
    """Return how many versions of `kernel` even and ragged batches, at any place in memory, would compile."""
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia.compiler import CUDABackend
    from triton.runtime.jit import create_function_from_signature

    from allpairs.engine.fused import kernels

    function = getattr(kernels, kernel)
    bind = create_function_from_signature(function.signature, function.params, CUDABackend(GPUTarget("cuda", 90, 32)))
    versions = set()
    for number, shift in ((65536, 0), (65535, 1), (1, 3), (4096, 2), (17, 0)):
        arguments: dict[str, object] = {}
        for name in function.arg_names:
            if name in SIZES:
                arguments[name] = 65536 if name == "row_stride" else number
            elif name.isupper():
                arguments[name] = 16
            elif name in ANYWHERE:
                arguments[name] = torch.empty(64)[shift:]
            else:
                arguments[name] = torch.empty(64)
        versions.add(str(bind(**arguments)[1]))
    return len(versions)


def every_variant(*, masked_alone: bool = False) -> list[Resources]:
    """Return every kernel as a half-precision batch launches it, with and without masks, and the rest once."""
    variants = [True] if masked_alone else [False, True]
    found = [compiled(kernel, "bf16", masked=masked) for kernel in TABLE for masked in variants]
    found.append(compiled("soft_excess", "fp32", masked=True))
    return found + [compiled(kernel, "fp32", masked=False) for kernel in MERGES]


def parsed(text: str) -> tuple[str, Launch]:
    """Return a kernel and its launch from `soft_weights=128x256x64,8,4`."""
    found = re.fullmatch(r"(\w+)=(\d+)x(\d+)x(\d+),(\d+),(\d+)", text)
    if found is None or found[1] not in TABLE:
        raise argparse.ArgumentTypeError(f"{text!r}; accepted: KERNEL=ROWSxCOLUMNSxDEPTH,WARPS,STAGES of {[*TABLE]}")
    rows, columns, depth, warps, stages = (int(number) for number in found.groups()[1:])
    return found[1], Launch(rows, columns, depth, warps, stages)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compile the fused kernels for Hopper and say what they take.")
    parser.add_argument("--launch", type=parsed, action="append", default=[], metavar="KERNEL=RxCxD,WARPS,STAGES")
    parser.add_argument("--json", action="store_true")
    given = parser.parse_args()
    if os.environ.get("TRITON_INTERPRET"):
        print("resources: kernels that are interpreted cannot be compiled; unset TRITON_INTERPRET", file=sys.stderr)
        sys.exit(2)
    with launching(**dict(given.launch)):
        found = every_variant(masked_alone=given.json)
    if given.json:
        versions = {kernel: compilations(kernel) for kernel in (*TABLE, *MERGES)}
        print(json.dumps({"compiled": [one._asdict() for one in found], "versions": versions}))
        return
    print("| kernel | embeddings | masked | registers | spilled | shared, KiB | before load | blocks | wgmma |")
    print("|---|---|---|---|---|---|---|---|---|")
    for one in found:
        cells: list[Any] = [one.kernel, one.dtype, "yes" if one.masked else "no", one.registers, one.spilled]
        wgmma = "serialized" if one.serialized else "yes" if one.wgmma else "no"
        cells += [f"{one.shared / 1024:.0f}", one.before_load if one.copy_engine else "–", one.blocks, wgmma]
        print("| " + " | ".join(str(cell) for cell in cells) + " |")


if __name__ == "__main__":
    main()
