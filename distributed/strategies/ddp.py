"""DistributedDataParallel: full weights, gradients and optimiser state on every rank."""

import pickle
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from allpairs.errors import UserError
from distributed.cached import CachedStep
from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.strategies.optimizer import make_adamw, set_learning_rate
from distributed.world import World


class DataParallel:
    """DDP over the ranks; a single rank is not wrapped."""

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

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run the step's forward through DDP's hooks; encoding in chunks needs none of them yet."""
        if self._cached is not None:
            return self._cached.encode(pairs, chunks)
        output: StepOutput = self._module(pairs)
        return output

    def update(self, loss: Tensor, lr_factor: float) -> float:
        """Backward (DDP averages), clip, AdamW step; return the norm before clipping."""
        set_learning_rate(self._optimizer.param_groups, self._peak * lr_factor)
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
        limit = self._clip if self._clip is not None else float("inf")
        norm = torch.nn.utils.clip_grad_norm_(self.step.parameters(), limit)
        self._optimizer.step()
        self.step.constrain()
        return float(norm)

    def save(self, folder: str) -> None:
        """Rank 0 writes optimizer.pt: the state is the same on all ranks."""
        if self._rank == 0:
            with (Path(folder) / "optimizer.pt").open("wb") as file:  # torch's own file hides what the system says
                torch.save(self._optimizer.state_dict(), file)

    def load(self, folder: str) -> None:
        """Read optimizer.pt; tensors and plain values only, no other object is ever constructed."""
        path = Path(folder) / "optimizer.pt"
        try:
            state = torch.load(path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            raise UserError(f"{path}: not a readable optimiser state ({str(error).splitlines()[0]})") from None
        self._optimizer.load_state_dict(state)
