"""DeepSpeed ZeRO stages 1 and 2: optimiser state (and gradients) sharded over the ranks; what stage 3 shares of it."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from allpairs.models.pieces import WeightPiece
from distributed.cached import CachedStep
from distributed.config import Config
from distributed.config.deepspeed import merged, require_deepspeed
from distributed.step import Chunk, Pairs, StepOutput, TrainStep
from distributed.strategies.moments import MOMENTS, Piece, SavedMoments, copied, copied_weights, state_of
from distributed.strategies.optimizer import NonFiniteGradients, make_adamw, set_learning_rate
from distributed.world import World


class DeepSpeedZero:
    """ZeRO over the ranks. DeepSpeed averages gradients as DDP does, so the objective's scaling is the same."""

    shares_weights = False

    def __init__(self, config: Config, step: TrainStep, world: World) -> None:
        require_deepspeed()  # here again: nodes need not have what the driver's has
        import deepspeed

        self.step = step.to(world.device)
        for parameter in self.step.parameters():  # DeepSpeed looks at them as bytes, which channels_last ones refuse
            parameter.data = parameter.data.contiguous()
        self._cached = CachedStep(self.step) if config.train.micro_batch is not None else None
        self._peak = config.optimizer.lr
        self._rank, self._world = world.rank, world.size
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.step,
            optimizer=make_adamw(self.step, config.optimizer),
            dist_init_required=False,
            config=self._settings(config, world),
        )

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of AdamW."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def _settings(self, config: Config, world: World) -> dict[str, Any]:
        """Return DeepSpeed's configuration: ours, and what `train.deepspeed` adds."""
        share = config.train.global_batch // world.size
        zero: dict[str, Any] = {"stage": config.train.zero_stage}
        if config.train.zero_stage == 3:
            # Buffers are made at once, for half a billion gradients unless the model has fewer.
            elements = sum(parameter.numel() for parameter in self.step.parameters())
            zero["reduce_bucket_size"] = min(500_000_000, max(1, elements))
        if self._cached is not None:
            zero["stage3_prefetch_bucket_size"] = 0  # the first pass runs beside the order that is fetched ahead of
        ours = {"steps_per_print": 10**9, "wall_clock_breakdown": False, "zero_optimization": zero}
        return merged(config.train.deepspeed, ours) | {
            "train_batch_size": share * world.size,
            "train_micro_batch_size_per_gpu": share,
            "gradient_accumulation_steps": 1,
            "gradient_clipping": config.optimizer.clip_norm or 0.0,
            # torch's AdamW serves CPU and GPU alike; DeepSpeed's own would need another compiled op.
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        }

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run the step's forward through DeepSpeed's engine; encoding in chunks does not need it yet."""
        if self._cached is not None:
            return self._cached.encode(pairs, chunks)
        output: StepOutput = self._engine(pairs)
        return output

    def backward(self, loss: Tensor) -> None:
        """Backward; ZeRO averages and shards."""
        if self._cached is None:
            self._engine.backward(loss)
        else:
            for chunk in self._cached.chunks(loss):
                self._engine.set_gradient_accumulation_boundary(chunk.objective is not None)
                self._engine.backward(self._engine(self._with_objective(chunk)))

    def update(self, lr_factor: float) -> float:
        """Clip, step; return the norm before clipping."""
        set_learning_rate(self._optimizer.param_groups, self._peak * lr_factor)
        self._engine.step()
        if self._optimizer.overflow:  # DeepSpeed leaves such a step out, and says nothing
            raise NonFiniteGradients
        self.step.constrain()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def _with_objective(self, chunk: Chunk) -> Chunk:
        """Give the objective's parameters a gradient in every chunk, zeros in all but the last.

        Stage 3 puts a step's first chunk in the place of what the step before left, and adds all others to that.
        """
        if chunk.objective is not None:
            return chunk
        learned = (parameter for parameter in self.step.objective.parameters() if parameter.requires_grad)
        return chunk._replace(objective=tuple(map(torch.zeros_like, learned)))

    def place(self, encoder: nn.Module) -> None:
        """Leave another encoder as it is."""

    def whole(self, encoder: nn.Module) -> AbstractContextManager[None]:
        """Nothing to do: every rank holds all weights, in stages 1 and 2."""
        return nullcontext()

    def weights(self, encoder: nn.Module) -> list[WeightPiece]:
        """Copy an encoder's weights on rank 0: the masters that the ranks share, in float32."""
        return copied_weights(encoder) if self._rank == 0 else []

    def load_weights(self, encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take an encoder's `weights`, for an evaluation: the masters stay as they are."""
        encoder.load_state_dict(weights)

    def moments(self) -> list[Piece]:
        """Copy what lies in this rank's partition."""
        pieces = []
        for name, flat, part in self._partition():
            if state := self._optimizer.optimizer.state.get(flat):
                here = part.hp_fragment_address
                moments = {moment: copied(state[moment].narrow(0, here.start, here.numel)) for moment in MOMENTS}
                pieces.append(Piece(name, part.lp_fragment_address.start, float(state["step"]), moments))
        return pieces

    def load_moments(self, saved: SavedMoments) -> None:
        """Read what this rank's partition needs, whoever wrote it."""
        for name, flat, part in self._partition():
            part.update_hp()  # the objective's parameters were loaded after the masters were made of them
            first, here = part.lp_fragment_address.start, part.hp_fragment_address
            moments = saved.read(name, first, first + here.numel)
            if moments is None:
                continue
            # A partition has one count of steps: parameters that came later, as a scale after a warm-up, follow it.
            state = self._optimizer.optimizer.state[flat] or state_of(flat, 0)
            state["step"].fill_(max(float(state["step"]), saved.step(name)))
            self._optimizer.optimizer.state[flat] = state
            for moment, values in moments.items():
                state[moment].narrow(0, here.start, here.numel).copy_(values)

    def _partition(self) -> Iterator[tuple[str, Tensor, Any]]:
        """Yield the parameters that this rank keeps moments of: name, flat partition, place in both."""
        names = {parameter: name for name, parameter in self.step.named_parameters()}
        zero = self._optimizer
        for group, flat in zip(zero.bit16_groups, zero.single_partition_of_fp32_groups, strict=True):
            for parameter in group:
                if parameter._hp_mapping is not None:
                    yield names[parameter], flat, parameter._hp_mapping
