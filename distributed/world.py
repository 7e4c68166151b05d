"""What all ranks know and agree on: small CPU collectives beside the training traffic."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from allpairs.errors import UserError

T = TypeVar("T")


class Stopped(RuntimeError):  # noqa: N818 -- not a mistake of the program: all ranks agreed to stop
    """Raised on every rank at the same step when any rank found a reason to stop."""


@dataclass(frozen=True)
class World:
    """This process among its peers.

    Attributes:
        rank, size: this rank and the number of ranks.
        control: gloo group for decisions on CPU tensors, which never wait for the GPU's queue; None for one rank.
        device: where this rank computes.
    """

    rank: int
    size: int
    control: dist.ProcessGroup | None
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> "World":
        """Make the control group; collective over all ranks. Without an initialised process group: a single rank."""
        if not dist.is_initialized() or dist.get_world_size() == 1:
            return cls(0, 1, None, device)
        return cls(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"), device)

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The group that embeddings and gradients travel over; None for one rank."""
        return None if self.size == 1 else dist.group.WORLD

    def sum(self, values: Sequence[float]) -> list[float]:
        """Add each of `values` over the ranks (float64)."""
        if self.control is None:
            return list(values)
        total = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(total, group=self.control)
        return total.tolist()

    def stop_together(self, reason: str | None) -> None:
        """Raise `Stopped` on every rank if any rank gives a reason. Collective.

        The first collective costs one number; the reasons themselves travel only when there are some.
        """
        if self.sum([reason is not None])[0]:
            self.raise_reasons(reason)

    def raise_reasons(self, reason: str | None) -> None:
        """Exchange the reasons and raise; call on all ranks once it is known that some rank has one."""
        reasons = self.gather(reason)
        raise Stopped("; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reasons) if text is not None))

    def agree(self, reason: str | None) -> str | None:
        """Return what ranks give as reasons, the same text on all of them; None where no rank has one. Collective."""
        if not self.sum([reason is not None])[0]:
            return None
        reasons = self.gather(reason)
        if len(set(reasons)) == 1:
            return reasons[0]
        return "; ".join(f"rank {rank}: {text}" for rank, text in enumerate(reasons) if text is not None)

    def together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns; a UserError that it raises on any rank becomes `Stopped` on all. Collective.

        `work` itself waits for nobody: a rank that fails in it would leave the others there.
        """
        outcomes: list[T] = []
        reason = None
        try:
            outcomes.append(work())
        except UserError as error:
            reason = str(error)
        if (agreed := self.agree(reason)) is not None:
            raise Stopped(agreed)
        return outcomes[0]

    def gather(self, value: T) -> list[T]:
        """Return every rank's `value`, a small object, in rank order, on every rank. Collective."""
        if self.control is None:
            return [value]
        values: list[T] = [value] * self.size
        dist.all_gather_object(values, value, group=self.control)
        return values

    def gather_rows(self, rows: Tensor) -> Tensor | None:
        """Concatenate every rank's `rows` `[n_r, ...]` on rank 0, in rank order; None elsewhere. Collective, ragged."""
        rows = rows.cpu().contiguous()
        if self.control is None:
            return rows
        sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(self.size)]
        dist.all_gather(sizes, torch.tensor([len(rows)]), group=self.control)
        largest = int(max(sizes))
        padded = torch.cat([rows, rows.new_zeros(largest - len(rows), *rows.shape[1:])])
        parts = [torch.empty_like(padded) for _ in range(self.size)] if self.rank == 0 else None
        dist.gather(padded, parts, group_dst=0, group=self.control)
        if parts is None:
            return None
        return torch.cat([part[: int(size)] for part, size in zip(parts, sizes, strict=True)])

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return rank 0's `tensor`, on the CPU; on other ranks it gives the shape and type alone. Collective."""
        tensor = tensor.cpu().contiguous()
        if self.control is not None:
            dist.broadcast(tensor, 0, group=self.control)
        return tensor

    def share_buffers(self, module: nn.Module) -> None:
        """Give every rank the buffers of rank 0's `module`: batch statistics differ after a step. Collective."""
        if self.size > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0, group=self.group)

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.control is not None:
            dist.barrier(group=self.control)


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor that ranks share (torch's DTensor, ZeRO-3's), any other as it is."""
    shared: Any = tensor
    if hasattr(shared, "ds_tensor"):
        _, count = zero3_range(tensor)
        part: Tensor = shared.ds_tensor.narrow(0, 0, count)
        return part
    return shared.to_local() if hasattr(shared, "to_local") else tensor


def zero3_range(parameter: Tensor) -> tuple[int, int]:
    """Return the first of the flattened elements that ZeRO-3 gives this rank of `parameter`, and how many they are.

    All ranks have as many but for the last, whose part is filled up with what means nothing.
    """
    shared: Any = parameter
    most = shared.partition_numel()
    start = min(dist.get_rank(shared.ds_process_group) * most, shared.ds_numel)
    return start, min(most, shared.ds_numel - start)


def is_shared(tensor: Tensor) -> bool:
    """Whether `local` gives less than the whole of it."""
    return hasattr(tensor, "to_local") or hasattr(tensor, "ds_tensor")
