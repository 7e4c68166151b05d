"""DeepSpeed ZeRO stages 1 and 2: optimiser state (and gradients) sharded over the ranks."""

from pathlib import Path

from torch import Tensor

from allpairs.errors import UserError
from allpairs.files import unwritable
from distributed.cached import CachedStep
from distributed.config import Config
from distributed.step import Pairs, StepOutput, TrainStep
from distributed.strategies.optimizer import make_adamw, set_learning_rate
from distributed.world import World

TAG = "zero"


class DeepSpeedZero:
    """ZeRO over the ranks. DeepSpeed averages gradients as DDP does, so the objective's scaling is the same."""

    def __init__(self, config: Config, step: TrainStep, world: World) -> None:
        try:
            import deepspeed
        except ImportError:
            raise UserError(
                "train.strategy=deepspeed: DeepSpeed is not installed; pip install '.[deepspeed]'"
            ) from None
        self.step = step.to(world.device)
        for parameter in self.step.parameters():  # DeepSpeed looks at them as bytes, which channels_last ones refuse
            parameter.data = parameter.data.contiguous()
        self._cached = CachedStep(self.step) if config.train.micro_batch is not None else None
        self._peak = config.optimizer.lr
        self._world = world.size
        self._engine, self._optimizer, _, _ = deepspeed.initialize(
            model=self.step,
            optimizer=make_adamw(self.step, config.optimizer),
            dist_init_required=False,
            config={
                "train_batch_size": config.train.global_batch // world.size * world.size,
                "train_micro_batch_size_per_gpu": config.train.global_batch // world.size,
                "gradient_clipping": config.optimizer.clip_norm or 0.0,
                "zero_optimization": {"stage": config.train.zero_stage},
                # torch's AdamW serves CPU and GPU alike; DeepSpeed's own would need another compiled op.
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
                "wall_clock_breakdown": False,
                "steps_per_print": 10**9,
            },
        )

    def forward(self, pairs: Pairs, chunks: int = 1) -> StepOutput:
        """Run the step's forward through DeepSpeed's engine; encoding in chunks does not need it yet."""
        if self._cached is not None:
            return self._cached.encode(pairs, chunks)
        output: StepOutput = self._engine(pairs)
        return output

    def update(self, loss: Tensor, lr_factor: float) -> float:
        """Backward (ZeRO averages and shards), clip, step; return the norm before clipping."""
        set_learning_rate(self._optimizer.param_groups, self._peak * lr_factor)
        if self._cached is None:
            self._engine.backward(loss)
        else:
            for chunk in self._cached.chunks(loss):
                self._engine.set_gradient_accumulation_boundary(chunk.objective is not None)
                self._engine.backward(self._engine(chunk))
        self._engine.step()
        self.step.constrain()
        norm = self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def save(self, folder: str) -> None:
        """Every rank writes its shard, in DeepSpeed's own format.

        Raises:
            UserError: this rank cannot write. The others wait inside DeepSpeed: who watches the run must end them.
        """
        try:
            self._engine.save_checkpoint(folder, tag=TAG)
        except (OSError, RuntimeError) as error:
            if (why := unwritable(error)) is None:
                raise
            raise UserError(f"{folder}: the optimiser's state cannot be written ({why})") from None

    def load(self, folder: str) -> None:
        """Read this rank's shard; the number of workers must be the one that wrote it."""
        shards = len(list((Path(folder) / TAG).glob("*zero_pp_rank_*optim_states.pt")))
        if shards != self._world:
            raise UserError(
                f"{folder}: written by {shards} ZeRO workers, this run has {self._world}: "
                f"resume with cluster.workers={shards}, or train with train.strategy=ddp"
            )
        # The shards are this run's own files, pickled by DeepSpeed; its loader needs torch's full unpickler.
        self._engine.load_checkpoint(folder, tag=TAG)
