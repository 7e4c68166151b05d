"""DistributedDataParallel: full weights, gradients and optimiser state on every rank."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from allpairs.models.pieces import WeightPiece
from distributed.cached import CachedStep
from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.strategies.moments import MOMENTS, Piece, SavedMoments, copied, copied_weights, state_of
from distributed.strategies.optimizer import make_adamw, require_finite, set_learning_rate
from distributed.world import World


class DataParallel:
    """DDP over the ranks; a single rank is not wrapped."""

    shares_weights = False

    def __init__(self, config: Config, step: TrainStep, world: World) -> None:
        self.step = step.to(world.device)
        self._peak = config.optimizer.lr
        self._clip = config.optimizer.clip_norm
        self._rank = world.rank
        self._optimizer = make_adamw(self.step, config.optimizer)
        self._cached = CachedStep(self.step) if config.train.micro_batch is not None else None
        self._module: torch.nn.Module = self.step
        if world.size > 1:
            devices = [world.device] if world.device.type == "cuda" else None
            # Gradients live in the all-reduce buckets: one copy less per step.
            self._module = DistributedDataParallel(self.step, device_ids=devices, gradient_as_bucket_view=True)

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of AdamW."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run the step's forward through DDP's hooks; encoding in chunks needs none of them yet."""
        if self._cached is not None:
            return self._cached.encode(pairs, chunks)
        output: StepOutput = self._module(pairs)
        return output

    def backward(self, loss: Tensor) -> None:
        """Backward; DDP averages."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._cached is None:
            loss.backward()
        else:
            for chunk in self._cached.chunks(loss):
                # One average a step: the last chunk's, which brings the objective's gradients.
                module = self._module
                alone = chunk.objective is None and isinstance(module, DistributedDataParallel)
                with module.no_sync() if alone else nullcontext():  # type: ignore[operator]  # DDP's own method
                    module(chunk).backward()

    def update(self, lr_factor: float) -> float:
        """Clip, AdamW step; return the norm before clipping."""
        set_learning_rate(self._optimizer.param_groups, self._peak * lr_factor)
        limit = self._clip if self._clip is not None else float("inf")
        norm = float(torch.nn.utils.clip_grad_norm_(self.step.parameters(), limit))
        require_finite(norm)
        self._optimizer.step()
        self.step.constrain()
        return norm

    def place(self, encoder: nn.Module) -> None:
        """Leave another encoder as it is."""

    def whole(self, encoder: nn.Module) -> AbstractContextManager[None]:
        """Nothing to do: every rank holds all weights."""
        return nullcontext()

    def weights(self, encoder: nn.Module) -> list[WeightPiece]:
        """Copy an encoder's weights on rank 0; they are the same on all ranks."""
        return copied_weights(encoder) if self._rank == 0 else []

    def load_weights(self, encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take an encoder's `weights`."""
        encoder.load_state_dict(weights)

    def moments(self) -> list[Piece]:
        """Copy the optimiser's state on rank 0; it is the same on all ranks."""
        pieces = []
        for name, parameter in self.step.named_parameters() if self._rank == 0 else ():
            if state := self._optimizer.state.get(parameter):
                moments = {moment: copied(state[moment]).flatten() for moment in MOMENTS}
                pieces.append(Piece(name, 0, float(state["step"]), moments))
        return pieces

    def load_moments(self, saved: SavedMoments) -> None:
        """Read the whole state on every rank."""
        for name, parameter in self.step.named_parameters():
            if (moments := saved.read(name, 0, parameter.numel())) is not None:
                state = self._optimizer.state[parameter] = state_of(parameter, saved.step(name))
                for moment, values in moments.items():
                    state[moment].copy_(values.view(parameter.shape))
