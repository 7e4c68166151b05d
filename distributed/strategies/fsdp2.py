"""FSDP2 (`fully_shard`): weights, gradients and optimiser state of the encoder sharded over the ranks, row by row.

The objective's learned scalars, which rows cannot shard, stay whole on every rank and are averaged by hand. In bf16 the
encoder computes with bfloat16 copies of float32 masters, and its gradients are averaged in float32.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from allpairs.models.pieces import WeightPiece
from distributed.cached import CachedStep
from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.strategies.moments import MOMENTS, Piece, SavedMoments, copied, state_of
from distributed.strategies.optimizer import make_adamw, require_finite, set_learning_rate
from distributed.world import World, local


class FullyShardedDataParallel:
    """`fully_shard` over the ranks: each numbered layer of a network by itself, what is left together."""

    def __init__(self, config: Config, step: TrainStep, world: World) -> None:
        self.step = step.to(world.device)
        self.shares_weights = world.size > 1
        self._world = world
        self._peak = config.optimizer.lr
        self._clip = config.optimizer.clip_norm
        if world.size > 1:
            _shard(self.step.encoder, world, bf16=step.bf16)
        self._optimizer = make_adamw(self.step, config.optimizer)
        self._cached = CachedStep(self.step) if config.train.micro_batch is not None else None

    @property
    def groups(self) -> list[dict[str, Any]]:
        """The groups of AdamW."""
        groups: list[dict[str, Any]] = self._optimizer.param_groups
        return groups

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run the step's forward; the encoder's hooks gather each layer's weights as it is reached."""
        if self._cached is not None:
            return self._cached.encode(pairs, chunks)
        output: StepOutput = self.step(pairs)
        return output

    def backward(self, loss: Tensor) -> None:
        """Backward, averaged and scattered layer by layer."""
        self._optimizer.zero_grad(set_to_none=True)
        if self._cached is None:
            loss.backward()
        else:
            for chunk in self._cached.chunks(loss):
                if isinstance(self.step.encoder, FSDPModule):
                    self.step.encoder.set_requires_gradient_sync(chunk.objective is not None)
                self.step(chunk).backward()
        self._average_whole()

    def update(self, lr_factor: float) -> float:
        """Clip, AdamW step; return the norm before clipping."""
        set_learning_rate(self._optimizer.param_groups, self._peak * lr_factor)
        norm = self._clip_gradients()
        require_finite(norm)
        self._optimizer.step()
        self.step.constrain()
        return norm

    def _average_whole(self) -> None:
        """Average the gradients of the parameters that are not sharded, in one collective."""
        if self._world.size == 1:
            return
        # Every rank names the same ones, also where one had no rows and thus no gradient.
        whole = [p for p in self.step.parameters() if p.requires_grad and not isinstance(p, DTensor)]
        if not whole:
            return
        parts = [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in whole]
        flat = torch.cat([part.to(torch.promote_types(part.dtype, torch.float32)) for part in parts])
        dist.all_reduce(flat, group=self._world.group)
        flat /= self._world.size
        for parameter, values in zip(whole, flat.split([p.numel() for p in whole]), strict=True):
            parameter.grad = values.view(parameter.shape).to(parameter.dtype)

    def _clip_gradients(self) -> float:
        """Scale the gradients down to `clip_norm` where they are longer; return their length before."""
        gradients = [(p.grad, isinstance(p, DTensor)) for p in self.step.parameters() if p.grad is not None]
        shards = [local(gradient) for gradient, sharded in gradients if sharded]
        whole = [gradient for gradient, sharded in gradients if not sharded]
        squares = torch.zeros((), dtype=torch.float32, device=self._world.device)
        for gradient in shards:
            squares += gradient.float().square().sum()
        if self._world.size > 1:
            dist.all_reduce(squares, group=self._world.group)
        for gradient in whole:
            squares += gradient.float().square().sum()
        norm = squares.sqrt()
        if self._clip is not None:
            factor = (self._clip / (norm + 1e-6)).clamp(max=1.0)
            torch._foreach_mul_([*shards, *whole], factor)
        return float(norm)

    def place(self, encoder: nn.Module) -> None:
        """Shard another encoder's weights as the trained one's are."""
        if self._world.size > 1:
            _shard(encoder, self._world, bf16=False)

    @contextmanager
    def whole(self, encoder: nn.Module) -> Iterator[None]:
        """Hold all weights on every rank, so that ranks may encode different numbers of batches."""
        layers = [module for module in encoder.modules() if isinstance(module, FSDPModule)]
        for layer in layers:
            layer.set_reshard_after_forward(False, recurse=False)
            layer.unshard()
        try:
            yield
        finally:
            for layer in layers:
                layer.reshard()
                layer.set_reshard_after_forward(layer is not encoder, recurse=False)

    def weights(self, encoder: nn.Module) -> list[WeightPiece]:
        """Copy the rows this rank holds; of what is whole everywhere rank 0 does."""
        pieces = []
        for name, value in encoder.state_dict().items():
            start, stop = _range(value, self._world)
            if start < stop and (isinstance(value, DTensor) or self._world.rank == 0):
                pieces.append(WeightPiece(name, tuple(value.shape), start, copied(local(value)).view(-1)))
        return pieces

    def load_weights(self, encoder: nn.Module, weights: Mapping[str, Tensor]) -> None:
        """Take this rank's rows of an encoder's `weights`, which every rank has."""
        for name, value in encoder.state_dict().items():
            full = weights[name].to(self._world.device)
            if isinstance(value, DTensor):
                full = distribute_tensor(full, value.device_mesh, value.placements, src_data_rank=None)
            value.copy_(full)

    def moments(self) -> list[Piece]:
        """Copy the rows this rank holds; of the parameters that are whole everywhere rank 0 does."""
        pieces = []
        for name, parameter, start, stop in self._held():
            state = self._optimizer.state.get(parameter)
            mine = isinstance(parameter, DTensor) or self._world.rank == 0
            if state and mine and start < stop:
                moments = {moment: copied(local(state[moment]).flatten()) for moment in MOMENTS}
                pieces.append(Piece(name, start, float(state["step"]), moments))
        return pieces

    def load_moments(self, saved: SavedMoments) -> None:
        """Read the rows this rank holds, whoever wrote them."""
        for name, parameter, start, stop in self._held():
            moments = saved.read(name, start, stop)
            if moments is not None:
                state = self._optimizer.state[parameter] = state_of(parameter, saved.step(name))
                for moment, values in moments.items():
                    rows = local(state[moment])
                    rows.copy_(values.view(rows.shape))

    def _held(self) -> Iterator[tuple[str, nn.Parameter, int, int]]:
        """Yield each trainable parameter with the range of its flattened elements that this rank holds."""
        for name, parameter in self.step.named_parameters():
            if not parameter.requires_grad:
                continue
            start, stop = _range(parameter, self._world)
            yield name, parameter, start, stop


def _range(tensor: Tensor, world: World) -> tuple[int, int]:
    """Return which of a tensor's flattened elements this rank holds."""
    if not isinstance(tensor, DTensor):
        return 0, tensor.numel()
    rows, width = len(tensor), tensor.numel() // len(tensor)
    most = -(-rows // world.size)  # rows a rank, but for the last ones
    start = min(world.rank * most, rows) * width
    return start, min(start + most * width, rows * width)


def _shard(encoder: nn.Module, world: World, *, bf16: bool) -> None:
    mesh = init_device_mesh(world.device.type, (world.size,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 else None
    options: dict[str, Any] = {"mesh": mesh} | ({} if policy is None else {"mp_policy": policy})
    scalars = {parameter for parameter in encoder.parameters() if parameter.ndim == 0}
    if scalars:
        options["ignored_params"] = scalars
    for parameter in encoder.parameters():  # fully_shard takes row-major parameters alone
        parameter.data = parameter.data.contiguous()
    for module in encoder.modules():
        if isinstance(module, nn.ModuleList):
            for layer in module:
                fully_shard(layer, reshard_after_forward=True, **options)
    fully_shard(encoder, reshard_after_forward=False, **options)
    for method in ("encode_images", "encode_texts"):
        register_fsdp_forward_method(encoder, method)
