"""One loss of others, timed in this process; for `benchmarks.gpu.peers`.

python -m benchmarks.gpu.peer NAME --batch B --dim D --device cuda --seconds S
"""

import argparse
import json
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks import clip_loss
from benchmarks.gpu.losses import SCALE, Loss, step, vectors
from benchmarks.gpu.timing import measure


class Peer(NamedTuple):
    """A loss of others."""

    package: str | None
    """Whose it is; None: written out here."""
    products: int
    """Of 2·B²·D operations, the least it can do."""
    loss: Callable[[str], Loss]
    """Given the device."""


def written_out(_: str) -> Loss:
    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        labels = torch.arange(len(queries), device=queries.device)
        of_queries = F.cross_entropy(SCALE * queries @ candidates.T, labels)
        return (of_queries + F.cross_entropy(SCALE * candidates @ queries.T, labels)) / 2

    return loss


def open_clip(_: str) -> Loss:
    loss = clip_loss.load()()
    return lambda queries, candidates: loss(queries, candidates, SCALE)


def siglip_kernel(**mode: int) -> Callable[[str], Loss]:
    """Its own choice for half precision, or with other chunks than it chooses."""

    def made(device: str) -> Loss:
        from siglip_kernel import fused_chunked_bf16_siglip_loss

        log_scale, bias = (torch.tensor(value, device=device, requires_grad=True) for value in (2.302, -10.0))
        return lambda queries, candidates: fused_chunked_bf16_siglip_loss(queries, candidates, log_scale, bias, **mode)

    return made


def liger(_: str) -> Loss:
    """The other side's embeddings are the weights of a linear layer, once for each direction."""
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    entropy = LigerFusedLinearCrossEntropyLoss()

    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        labels = torch.arange(len(queries), device=queries.device)
        of_queries = entropy(candidates, SCALE * queries, labels)
        return (of_queries + entropy(queries, SCALE * candidates, labels)) / 2

    return loss


def inf_cl(_: str) -> Loss:
    from inf_cl import cal_flash_loss

    def loss(queries: Tensor, candidates: Tensor) -> Tensor:
        of_queries = cal_flash_loss(queries, candidates, scale=SCALE).mean()
        return (of_queries + cal_flash_loss(candidates, queries, scale=SCALE).mean()) / 2

    return loss


PEERS = {
    "ClipLoss, written out": Peer(None, 4, written_out),
    "open_clip ClipLoss": Peer("open_clip", 4, open_clip),
    "siglip-kernel, fastest": Peer("siglip_kernel", 3, siglip_kernel()),
    "siglip-kernel, least memory": Peer("siglip_kernel", 3, siglip_kernel(chunk_size=1024)),
    "Liger fused linear cross-entropy": Peer("liger_kernel", 4, liger),
    "Inf-CL": Peer("inf_cl", 4, inf_cl),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Time one loss of others.")
    parser.add_argument("name", choices=list(PEERS))
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--dim", type=int, required=True)
    parser.add_argument("--device", required=True)
    parser.add_argument("--seconds", type=float, required=True)
    given = parser.parse_args()
    sides = vectors(given.batch, given.dim, given.device, torch.bfloat16)
    call = step(PEERS[given.name].loss(given.device), sides)
    print(json.dumps(measure(call, given.device, seconds=given.seconds, most=20)))


if __name__ == "__main__":
    main()
