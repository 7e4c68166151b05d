"""What stops all ranks together: a loss or gradients that are not finite, before they change a weight; ranks apart."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import NoReturn

import torch
from torch import Tensor, nn

from distributed.average import Average
from distributed.replicas import difference
from distributed.step import Pairs
from distributed.strategies import Strategy
from distributed.world import Stopped, World

SHOWN = 3


class Guards:
    """One run's; what it raises is the same on all ranks."""

    def __init__(self, strategy: Strategy, average: Average | None, world: World) -> None:
        self._strategy = strategy
        self._modules: dict[str, nn.Module] = {"": strategy.step}
        if average is not None:
            self._modules["average."] = average.encoder
        self._world = world
        self.saved_step: int | None = None
        """The step of the last checkpoint."""

    def refuse_loss(self, value: float, where: str, rows: Mapping[str, Tensor], keys: Sequence[str]) -> NoReturn:
        """Say whose embeddings, `[n, D]` by kind, the loss comes from that is not finite on some rank. Collective.

        Raises:
            Stopped: always.
        """
        raise Stopped(explain_loss(where, self._world.gather((value, not_finite(rows, keys)))))

    def blame(self, where: str, pairs: Pairs, chunks: int, seed: int) -> NoReturn:
        """Compute gradients that are not finite once more, to name the ranks and parameters. Collective.

        Raises:
            Stopped: always.
        """
        torch.manual_seed(seed)
        with seen_gradients(self._strategy.step) as found:
            self._strategy.backward(self._strategy.forward(pairs, chunks).loss)
        raise Stopped(explain_gradients(where, self._world.gather(found), self._kept))

    def compare(self, step: int) -> None:
        """Compare the weights that all ranks should hold alike after `step`. Collective.

        Raises:
            Stopped: they do not.
        """
        differs = difference(self._modules, self._world)
        if differs is not None:
            raise Stopped(
                f"the ranks came apart: after step {step} {differs}. No checkpoint is written of that; {self._kept}. "
                "Where it happens again, a device, its memory or the network fails, or code changes weights on one rank"
            )

    @property
    def _kept(self) -> str:
        saved = self.saved_step
        return "there is none yet" if saved is None else f"--resume auto goes on from step {saved}'s"


@contextmanager
def seen_gradients(module: nn.Module) -> Iterator[dict[str, int]]:
    """Yield the names of the parameters whose own gradient on this rank, before any average, was not finite.

    In the order of the module, each with how many of its elements. Noted while the block runs a step: parameters of
    `fully_shard` are whole only inside a forward, so their layers look for them there.
    """
    from torch.distributed.fsdp import FSDPModule

    found: dict[str, int] = {}
    noted: dict[str, int] = {}
    names = [name for name, _ in module.named_parameters()]
    hooks = []

    def look(within: nn.Module, prefix: str = "") -> None:
        for name, parameter in within.named_parameters(prefix):
            if parameter.requires_grad and not hasattr(parameter, "to_local"):
                hooks.append(parameter.register_hook(partial(note, name)))

    def note(name: str, gradient: Tensor) -> None:
        if bad := int((~torch.isfinite(gradient)).sum()):
            noted[name] = max(noted.get(name, 0), bad)

    look(module)
    for prefix, layer in module.named_modules():
        sharded = isinstance(layer, FSDPModule)
        if sharded:
            hooks.append(layer.register_forward_pre_hook(lambda layer, _, prefix=prefix: look(layer, prefix)))
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
        found |= {name: noted[name] for name in names if name in noted}


def explain_gradients(where: str, ranks: Sequence[Mapping[str, int]], kept: str) -> str:
    """Say which ranks' gradients are not finite, of which parameters: the same line on every rank.

    `ranks` are what `seen_gradients` found on each, in a second pass over the same batch.
    """
    told = []
    for rank, found in enumerate(ranks):
        if found:
            names = ", ".join(list(found)[:SHOWN]) + (", …" if len(found) > SHOWN else "")
            told.append(f"rank {rank}: {len(found)} parameter(s) ({names})")
    cause = "; ".join(told) or (
        "computed once more, those of every rank are: their sum or its norm is too large for float32, or a device or "
        "the network fails"
    )
    return (
        f"the gradients are not finite at {where}, though the loss is: {cause}. This step changed no weight, and no "
        f"checkpoint is written of it; {kept}. "
        "Try a lower optimizer.lr, a longer optimizer.warmup_epochs, train.precision=fp32 or a smaller objective scale"
    )


def explain_loss(where: str, ranks: Sequence[tuple[float, str]]) -> str:
    """Say which ranks' embeddings a non-finite loss comes from: the same line on every rank.

    `ranks` are each rank's value of the loss and what `not_finite` says of its embeddings.
    """
    value = next((value for value, _ in ranks if not math.isfinite(value)), math.nan)
    told = [f"rank {rank}: {found}" for rank, (_, found) in enumerate(ranks) if found]
    return (
        f"the loss is {value} at {where}: {'; '.join(told) or 'the embeddings of every rank are finite'}. "
        "This step changed no weight; try a lower optimizer.lr, a longer warm-up or a smaller objective scale"
    )


def not_finite(rows: Mapping[str, Tensor], keys: Sequence[str]) -> str:
    """Say how many of a rank's embeddings, `[n, D]` by kind, are not finite, and of which samples; or nothing."""
    causes = []
    for name, embeddings in rows.items():
        bad = (~torch.isfinite(embeddings).all(dim=1)).nonzero().flatten().tolist()
        if bad:
            samples = ", ".join(keys[row] for row in bad[:SHOWN])
            more = ", …" if len(bad) > SHOWN else ""
            causes.append(f"{len(bad)} of {len(embeddings)} {name} embeddings are not finite (samples {samples}{more})")
    return ", ".join(causes)
