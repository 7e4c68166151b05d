"""DeepSpeed ZeRO stage 3: weights too are sharded over the ranks, each parameter's flattened elements in equal parts.

What DeepSpeed keeps whole (`stage3_param_persistence_threshold`) it still steps in parts; the objective's learned
scalars are among it whatever the threshold.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from allpairs.models.pieces import WeightPiece
from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.strategies.deepspeed import DeepSpeedZero
from distributed.strategies.moments import MOMENTS, Piece, SavedMoments, copied, state_of
from distributed.strategies.optimizer import NonFiniteGradients
from distributed.world import World, local, zero3_range


@dataclass(frozen=True)
class _Held:
    """A parameter's elements `start` to `start + count`, flattened, which this rank steps."""

    name: str
    parameter: Any
    start: int
    count: int
    flat: Tensor
    """The masters that they lie in, from `offset` on."""
    offset: int


class ZeroStage3(DeepSpeedZero):
    """Stage 3 over the ranks; a module's weights are gathered where it is run."""

    def __init__(self, config: Config, step: TrainStep, world: World) -> None:
        # DeepSpeed calls torch's collectives by their former names, at each of which torch warns.
        warnings.filterwarnings("ignore", r"`torch\.distributed\.\w+_tensor` is deprecated", FutureWarning)
        super().__init__(config, step, world)
        self.shares_weights = world.size > 1
        self._keep_whole(self.step.objective)

    def _keep_whole(self, module: nn.Module) -> None:
        """Have DeepSpeed gather a module's parameters after each step, and let go of them in the step alone.

        What it hangs on modules would let go of them behind each call, and gather them again at the next: a collective,
        where rank 0 alone measures what others do not.
        """
        kept = self._optimizer.persistent_parameters
        parameter: Any
        for parameter in module.parameters():
            if not parameter.ds_persist:
                parameter.ds_persist = True
                kept.append(parameter)
        for part in module.modules():
            part._forward_pre_hooks.clear()
            part._forward_hooks.clear()
        self._gather_kept()

    def _gather_kept(self) -> None:
        kept = self._optimizer.persistent_parameters
        if kept:
            kept[0].all_gather(param_list=kept)

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """As in the other stages, in chunks too where a module reads another's weights, as CLIP's do.

        DeepSpeed gathers those where it sees them read, and looks while its engine runs the model; here chunks are
        encoded before that.
        """
        if self._cached is None:
            return super().forward(pairs, chunks)
        read: Any = [module._parameters for module in self.step.modules() if hasattr(module._parameters, "_in_forward")]
        for parameters in read:
            parameters._in_forward = True
        try:
            return super().forward(pairs, chunks)
        finally:
            for parameters in read:
                parameters._in_forward = False

    def update(self, lr_factor: float) -> float:
        """As in the other stages; what is kept whole is there again after a step that DeepSpeed left out, too."""
        try:
            return super().update(lr_factor)
        except NonFiniteGradients:
            self._gather_kept()
            raise

    def place(self, encoder: nn.Module) -> None:
        """Take another encoder's weights apart as the trained one's are."""
        trained: Any = next(self.step.encoder.parameters())
        for parameter in encoder.parameters():
            parameter.data = parameter.data.contiguous()
        trained.convert_to_zero_parameters(param_list=list(encoder.parameters()))

    @contextmanager
    def whole(self, encoder: nn.Module) -> Iterator[None]:
        """Hold all weights on every rank, so that ranks may encode different numbers of batches."""
        from deepspeed.runtime.zero import GatheredParameters
        from deepspeed.runtime.zero.stage3 import unwrap_model_for_generation

        if encoder is self.step.encoder:  # whose hooks would let go of each layer's weights behind it
            with unwrap_model_for_generation(self._engine):
                yield
            self._keep_whole(self.step.objective)
        else:
            with GatheredParameters(list(encoder.parameters())):
                yield

    def weights(self, encoder: nn.Module) -> list[WeightPiece]:
        """Copy the part of each parameter that this rank holds; of the buffers rank 0 does."""
        pieces = []
        for name, value in encoder.state_dict(keep_vars=True).items():
            if hasattr(value, "ds_tensor"):
                (start, _), shape, values = zero3_range(value), value.ds_shape, local(value)
            else:
                start, shape, values = 0, value.shape, value.flatten()
            if len(values) and (hasattr(value, "ds_tensor") or self._rank == 0):
                pieces.append(WeightPiece(name, tuple(shape), start, copied(values)))
        return pieces

    @torch.no_grad()
    def load_weights(self, encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take this rank's part of an encoder's `weights`, for an evaluation: the masters stay as they are."""
        for name, value in encoder.state_dict(keep_vars=True).items():
            if hasattr(value, "ds_tensor"):
                start, count = zero3_range(value)
                value.partition()  # or what is whole here would stay as it is
                local(value).copy_(weights[name].flatten()[start : start + count])
            else:
                value.copy_(weights[name])
        self._gather_kept()

    def moments(self) -> list[Piece]:
        """Copy what lies in this rank's part of each parameter."""
        pieces = []
        for held in self._held():
            if state := self._optimizer.optimizer.state.get(held.flat):
                moments = {moment: copied(state[moment].narrow(0, held.offset, held.count)) for moment in MOMENTS}
                pieces.append(Piece(held.name, held.start, float(state["step"]), moments))
        return pieces

    @torch.no_grad()
    def load_moments(self, saved: SavedMoments) -> None:
        """Read what this rank's part needs, whoever wrote it."""
        learned = set(self.step.objective.parameters())
        for held in self._held():
            if held.parameter in learned:  # it was loaded after the masters were made
                values = held.parameter.flatten()[held.start : held.start + held.count]
                local(held.parameter).copy_(values)
                held.flat.narrow(0, held.offset, held.count).copy_(values)
            moments = saved.read(held.name, held.start, held.start + held.count)
            if moments is None:
                continue
            # A group of parameters has one count of steps: those that came later, as a scale after a warm-up, follow.
            state = self._optimizer.optimizer.state[held.flat] or state_of(held.flat, 0)
            state["step"].fill_(max(float(state["step"]), saved.step(held.name)))
            self._optimizer.optimizer.state[held.flat] = state
            for moment, values in moments.items():
                state[moment].narrow(0, held.offset, held.count).copy_(values)

    def _held(self) -> Iterator[_Held]:
        """Yield what this rank steps, without the padding that makes all parts equal."""
        zero = self._optimizer
        for name, parameter in self.step.named_parameters():
            if parameter.requires_grad:
                group, offset, _ = zero.grad_position[zero.get_param_id(parameter)]
                start, count = zero3_range(parameter)
                if count:
                    yield _Held(name, parameter, start, count, zero.fp32_partitioned_groups_flat[group], offset)
