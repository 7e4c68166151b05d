"""How long the weights are, and how far one step moved them."""

import math

import torch
from torch import Tensor, nn

from distributed.world import World, is_shared, local


class StepNorms:
    """Made before an update and measured after it: in between it holds a copy of the weights that this rank keeps."""

    def __init__(self, module: nn.Module) -> None:
        self._weights = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self._before = [local(weight).detach().clone() for weight in self._weights]

    def measure(self, world: World) -> dict[str, float]:
        """Return the Euclidean norms of all trainable weights and of their last change. Collective where any is shared.

        A weight's own rows count where ranks share them, once where every rank holds all.
        """
        now = [local(weight).detach() for weight in self._weights]
        torch._foreach_sub_(self._before, now)
        shared = torch.tensor([is_shared(weight) for weight in self._weights])
        squares = torch.stack([_squares(now), _squares(self._before)])  # [2, P]
        if shared.any():
            squares[:, shared] = torch.tensor(
                [world.sum(row) for row in squares[:, shared].tolist()], dtype=torch.float64
            )
        weights, update = squares.sum(dim=1).tolist()
        return {"train/parameter_norm": math.sqrt(weights), "train/update_norm": math.sqrt(update)}


def _squares(tensors: list[Tensor]) -> Tensor:
    """Return each tensor's squared norm, on the CPU: one copy for all of them."""
    norms = torch.stack(torch._foreach_norm([tensor.float() for tensor in tensors])).to("cpu", torch.float64)
    return norms.square()
