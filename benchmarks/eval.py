"""Time and extra memory of exact retrieval evaluation on a CPU, beside the loops and packages that papers use.

    python -m benchmarks.eval [--images 1000 5000 20000] [--dim 512] [--threads N] [--only PEER ...]

N images, 5N captions, unit vectors, float32. Every figure comes from a process of its own, one after the other: seconds
are the median of a few repetitions, memory the highest resident beyond what the process held with its inputs made.
Every peer gives R@1, R@5 and R@10 of both directions, whose sum is shown: they agree but for ties and rounding. Ours
gives all its other metrics too. A peer that would take longer than five minutes stops early and is extrapolated from
the share of the queries it had answered; such figures carry a ~. Run it
on a quiet machine. A million by a million on a GPU: `benchmarks.gpu`.

Peers are written out from their sources: VSE++'s evaluation.py (a sort per query; in float32 here, float64 there) and
CLIP_benchmark's zeroshot_retrieval.py (a top-k and its one-hot per recall, batches of 64). torchmetrics' hit rate is
the field's recall; it takes one flat list of all pairs, so it runs up to 1,000 images.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks.loss_cpu import ROOT, memory

IMAGES = (1000, 5000, 20000)
CAPTIONS = 5
KS = (1, 5, 10)
LIMIT = 300.0  # seconds, from which a peer is extrapolated
LOOKED = 20.0  # seconds after which that is judged
FLAT_LIMIT = 1000  # images, for a peer that lists every pair
BATCH = 64  # of CLIP_benchmark's default
OURS = "retrieval_eval"
VSE = "VSE++ argsort loop"
CLIP = "CLIP_benchmark"
FAISS = "FAISS flat, top 10"
TARGETS = {VSE: 10.0, CLIP: 40.0, FAISS: 1.0}  # times our seconds, at least, at the largest size
MEMORY_TARGET = 100  # MiB, at most, of ours

Step = tuple[float, Callable[[], float]]
Peer = Callable[[torch.Tensor, torch.Tensor], Iterator[Step]]
"""Given images [N, D] and captions [5N, D] in the order of their images, yields the share of the work done, and what
gives the RSUM of that share, which is not asked for until the end."""


def ours(images: torch.Tensor, captions: torch.Tensor) -> Iterator[Step]:
    from retrieval_eval import evaluate

    ids = np.arange(len(images))
    report = evaluate(images, captions, ids, np.repeat(ids, CAPTIONS))
    yield 1.0, lambda: report.metrics["rsum"]


def vse(images: torch.Tensor, captions: torch.Tensor) -> Iterator[Step]:
    ims, caps = images.numpy(), captions.numpy()
    ranks: tuple[list[int], list[int]] = ([], [])

    def rsum() -> float:
        return sum(100 * float(np.mean(np.array(each) < k)) for each in ranks for k in KS)

    for index in range(len(ims)):  # both directions of an image in turn, so that a share is one of both
        inds = np.argsort(np.dot(ims[index : index + 1], caps.T).flatten())[::-1]
        own = range(CAPTIONS * index, CAPTIONS * (index + 1))
        ranks[0].append(min(np.where(inds == caption)[0][0] for caption in own))
        for scores in np.dot(caps[own.start : own.stop], ims.T):
            ranks[1].append(np.where(np.argsort(scores)[::-1] == index)[0][0])
        if index % 20 == 19 or index == len(ims) - 1:
            yield (index + 1) / len(ims), rsum


def clip_benchmark(images: torch.Tensor, captions: torch.Tensor) -> Iterator[Step]:
    scores = captions @ images.T
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(captions)), torch.arange(len(images)).repeat_interleave(CAPTIONS)] = True
    found: dict[tuple[int, int], list[torch.Tensor]] = {}

    def rsum() -> float:
        return sum(100 * float((torch.cat(each) > 0).float().mean()) for each in found.values())

    batches = -(-len(images) // BATCH)
    for batch in range(batches):  # both directions and all k in turn, so that a share is one of all the work
        for side, (S, P, size) in enumerate(((scores, positive, CAPTIONS * BATCH), (scores.T, positive.T, BATCH))):
            for start in range(batch * size, min((batch + 1) * size, len(S)), BATCH):
                x, y = S[start : start + BATCH], P[start : start + BATCH]
                for k in KS:
                    best = torch.nn.functional.one_hot(torch.topk(x, k, dim=1)[1], num_classes=x.shape[1])
                    hits = (best * y.view(len(y), 1, -1)).sum(dim=(1, 2))
                    found.setdefault((side, k), []).append(hits / y.sum(dim=1))
        yield (batch + 1) / batches, rsum


def torchmetrics(images: torch.Tensor, captions: torch.Tensor) -> Iterator[Step]:
    from torchmetrics.retrieval import RetrievalHitRate

    scores = 2 + images @ captions.T  # scores of 0 and below count as "not retrieved"
    target = torch.arange(len(images))[:, None] == torch.arange(len(images)).repeat_interleave(CAPTIONS)
    total = 0.0
    for S, right in ((scores, target), (scores.T, target.T)):
        query = torch.arange(len(S))[:, None].expand_as(S).reshape(-1)
        for k in KS:
            total += 100 * float(RetrievalHitRate(top_k=k)(S.reshape(-1), right.reshape(-1), indexes=query))
    yield 1.0, lambda: total


def faiss_flat(images: torch.Tensor, captions: torch.Tensor) -> Iterator[Step]:
    import faiss

    total = 0.0
    image_of = np.arange(len(captions)) // CAPTIONS  # positions, in data made here
    for asking, answering in ((images, captions), (captions, images)):
        index = faiss.IndexFlatIP(answering.shape[1])
        index.add(answering.numpy())
        _, found = index.search(asking.numpy(), max(KS))
        right = image_of[found] == np.arange(len(images))[:, None] if asking is images else found == image_of[:, None]
        total += sum(100 * float(right[:, :k].any(1).mean()) for k in KS)
    yield 1.0, lambda: total


PEERS: dict[str, Peer] = {
    OURS: ours,
    FAISS: faiss_flat,
    VSE: vse,
    CLIP: clip_benchmark,
    "torchmetrics HitRate": torchmetrics,
}


def data(images: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return unit vectors [N, D] and [5N, D], captions near their images and in their order."""
    generator = torch.Generator().manual_seed(0)
    I = torch.nn.functional.normalize(torch.randn(images, dim, generator=generator), dim=1)  # noqa: E741
    C = torch.randn(CAPTIONS * images, dim, generator=generator)
    C.view(images, CAPTIONS, dim).add_(I[:, None], alpha=4.0)
    return I, C.div_(torch.linalg.vector_norm(C, dim=1, keepdim=True))


def answer(peer: Peer, images: torch.Tensor, captions: torch.Tensor) -> tuple[float, float, float]:
    """Return seconds of the whole work, the share of it that was measured, and the RSUM of that share."""
    started = time.perf_counter()
    first = None  # a peer's preparations end within its first piece, and are not multiplied
    share, rsum = 0.0, float
    for share, rsum in peer(images, captions):
        spent = time.perf_counter() - started
        first = (spent, share) if first is None else first
        rest = (spent - first[0]) / (share - first[1]) * (1 - share) if share > first[1] else 0.0
        if spent > LOOKED and spent + rest > LIMIT:
            return spent + rest, share, rsum()
    return time.perf_counter() - started, share, rsum()


def measure(name: str, images: int, dim: int, threads: int) -> dict[str, float]:
    """Return seconds, bytes, measured share and RSUM of one peer in this process, which does nothing else."""
    torch.set_num_threads(threads)
    if name == FAISS:
        import faiss

        faiss.omp_set_num_threads(threads)
    small = data(64, dim)
    answer(PEERS[name], *small)  # what a library loads and allocates at first use
    inputs = data(images, dim)
    ctypes.CDLL(None).malloc_trim(0)  # what the small one left free is not there for the large one
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts again from here
    before = memory("VmRSS")
    seconds: list[float] = []
    share = rsum = 0.0
    while len(seconds) < 5 and sum(seconds) < 10:
        spent, share, rsum = answer(PEERS[name], *inputs)
        seconds.append(spent)
    return {
        "seconds": statistics.median(seconds),
        "bytes": memory("VmHWM") - before,
        "share": share,
        "rsum": rsum,
    }


def in_a_process(name: str, images: int, dim: int, threads: int) -> dict[str, float]:
    """Return what `measure` finds."""
    command = [sys.executable, "-m", "benchmarks.eval", "--measure", name]
    command += ["--images", str(images), "--dim", str(dim), "--threads", str(threads)]
    limits = {variable: str(threads) for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")}
    result = subprocess.run(command, cwd=ROOT, env=os.environ | limits, capture_output=True, text=True, check=False)
    if result.returncode:
        sys.exit(f"{name} at {images} images failed ({result.returncode}):\n{result.stderr}")
    found: dict[str, float] = json.loads(result.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description="Time retrieval evaluation.")
    parser.add_argument("--images", type=int, nargs="+", default=list(IMAGES))
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--only", nargs="+", default=list(PEERS), choices=list(PEERS), metavar="PEER")
    parser.add_argument("--measure", choices=list(PEERS), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure, given.images[0], given.dim, given.threads)))
        return
    title = f"R@1, R@5, R@10 both ways of N images x {CAPTIONS}N captions, D={given.dim}, {given.threads} threads"
    table = Table("N", "evaluation", "seconds", "time / ours", "extra MiB", "RSUM", title=title)
    verdicts: list[str] = []
    for images in given.images:
        base: float | None = None
        verdicts = []
        for name in given.only:
            if name.startswith("torchmetrics") and images > FLAT_LIMIT:
                table.add_row(f"{images:,}", name, f"not run beyond {FLAT_LIMIT:,}", "", "", "")
                continue
            print(f"{images} {name}", file=sys.stderr)
            found = in_a_process(name, images, given.dim, given.threads)
            about = "" if found["share"] == 1 else "~"
            base = found["seconds"] if name == OURS else base
            ratio = None if base is None else found["seconds"] / base
            megabytes = found["bytes"] / 2**20
            table.add_row(
                f"{images:,}",
                f"{name} ({100 * found['share']:.0f} % measured)" if about else name,
                f"{about}{found['seconds']:.2f}",
                "" if ratio is None else f"{about}{ratio:.2f}",
                f"{megabytes:,.0f}",
                f"{about}{found['rsum']:.1f}",
            )
            if name == OURS:
                verdicts.append(f"{name}: {megabytes:,.0f} MiB extra, target at most {MEMORY_TARGET}")
            elif ratio is not None and name in TARGETS:
                verdicts.append(f"{name}: {about}{ratio:.1f} times our seconds, target at least {TARGETS[name]:g}")
        table.add_section()
    console = Console(width=120)
    console.print(table)
    console.print(f"At N = {given.images[-1]:,} (the targets are for 20,000):", *verdicts, sep="\n  ", highlight=False)


if __name__ == "__main__":
    main()
