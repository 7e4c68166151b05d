"""A user's own DeepSpeed settings (`train.deepspeed`) beside ours: read, compared, merged; every conflict is named.

What decides a run is said in one place, its configuration: a setting that allpairs has a key for may repeat that key's
value or say "auto", as transformers' files do, and nothing else.
"""

from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allpairs.errors import UserError, nearest
from allpairs.files import read_json

if TYPE_CHECKING:
    from distributed.config.tree import Config

KEYS = (
    "activation_checkpointing", "aio", "amp", "autotuning", "bf16", "check_overflow", "checkpoint", "comms_logger",
    "communication_data_type", "compile", "compression_training", "csv_monitor", "data_efficiency", "data_types",
    "dataloader_drop_last", "disable_allgather", "disable_python_gc", "dump_state", "flops_profiler", "fp16",
    "gradient_accumulation_steps", "gradient_allreduce_op", "gradient_clipping", "gradient_predivide_factor",
    "log_level", "managed_gradient_accumulation", "memory_breakdown", "optimizer", "prescale_gradients", "scheduler",
    "seq_parallel_communication_data_type", "sparse_gradients", "steps_per_print", "tensorboard", "torch_autocast",
    "train_batch_size", "train_micro_batch_size_per_gpu", "wall_clock_breakdown", "wandb",
    "zero_allow_untested_optimizer", "zero_force_ds_cpu_optimizer", "zero_optimization",
)  # fmt: skip
"""DeepSpeed's sections that mean something to training as it is done here; it takes any other without a word."""

ZERO_KEYS = (
    "allgather_bucket_size", "allgather_partitions", "compute_grad_norm", "contiguous_gradients",
    "cpu_offload", "cpu_offload_param", "cpu_offload_use_pin_memory", "elastic_checkpoint", "enable_sanity_checks",
    "ignore_unused_parameters", "leaf_module", "legacy_stage1", "load_from_fp32_weights", "log_trace_cache_warnings",
    "memory_efficient_linear", "offload_optimizer", "offload_param", "overlap_comm", "override_module_apply",
    "parameter_alignment", "pipeline_loading_checkpoint", "reduce_bucket_size", "reduce_scatter",
    "round_robin_gradients", "save_muon_momentum_buffer_in_memory", "stage", "stage3_allgather_sequential",
    "stage3_gather_16bit_weights_on_model_save", "stage3_gather_fp16_weights_on_model_save",
    "stage3_max_live_parameters", "stage3_max_reuse_distance", "stage3_model_persistence_threshold",
    "stage3_module_granularity_threshold", "stage3_param_persistence_threshold", "stage3_prefetch_bucket_size",
    "stage3_use_all_reduce_for_fetch_params", "sub_group_size", "use_multi_rank_bucket_allreduce", "zenflow",
    "zero_hpz_partition_size", "zero_quantized_gradients", "zero_quantized_nontrainable_weights",
    "zero_quantized_weights",
)  # fmt: skip
"""Those of `zero_optimization`; DeepSpeed refuses any other."""

_OURS = ("amp", "bf16", "fp16", "optimizer", "scheduler", "torch_autocast")
"""Sections that are never passed on: what they say is compared, and done by allpairs."""


def require_deepspeed() -> None:
    """Raise UserError that names the extra where DeepSpeed is missing; importing it would take seconds."""
    if find_spec("deepspeed") is None:
        raise UserError("train.strategy=deepspeed: DeepSpeed is not installed; pip install '.[deepspeed]'")


def read_settings(value: Any) -> Any:
    """Return the settings of a JSON file where `value` names one; anything else as it is.

    Raises:
        UserError: there is no such file, or it holds something else.
    """
    if not isinstance(value, str | Path):
        return value
    settings = read_json(Path(value).expanduser())
    if not isinstance(settings, dict):
        raise UserError(f"{value}: expected an object of DeepSpeed's settings, found {type(settings).__name__}")
    return settings


def check_settings(config: "Config") -> None:
    """Compare `train.deepspeed` with the rest of the configuration.

    Raises:
        UserError: names each setting that contradicts a key of ours, both with their values, or that DeepSpeed refuses.
    """
    given = dict(_leaves(config.train.deepspeed or {}))
    if given and config.train.strategy != "deepspeed":
        raise UserError(
            f"train.deepspeed is set, but train.strategy={config.train.strategy}; accepted is null, or "
            "train.strategy=deepspeed"
        )
    ours = _ours(config)
    mistakes = [f"{key}: unknown key{nearest(key, KEYS)}" for key in config.train.deepspeed or {} if _misspelt(key)]
    for path, value in given.items():
        section, _, key = path.partition(".")
        if section == "zero_optimization" and key.partition(".")[0] not in ZERO_KEYS:
            mistakes.append(f"{path}: unknown key{nearest(key.partition('.')[0], ZERO_KEYS)}")
        elif path in ours and value != ours[path][1]:
            name, accepted = ours[path]
            mistakes.append(
                f'{path}={value!r}, but {name}={accepted!r}; accepted: the same in both, "auto", or no {path}'
            )
        elif section in ("optimizer", "scheduler") and path not in ours:
            mistakes.append(f"{path}={value!r}, but the section optimizer decides, which has no such key; leave it out")
        elif path.endswith(("offload_optimizer.device", "offload_param.device")) and value not in ("cpu", "none"):
            mistakes.append(f"{path}={value!r}: checkpoints could not hold what lies there; accepted: cpu, none")
    if mistakes:
        raise UserError(f"train.deepspeed: {'; '.join(mistakes)}")


def unknown_settings(settings: Mapping[str, Any] | None) -> list[str]:
    """Return a line for each section that is none of `KEYS`, nor like one: another version of DeepSpeed may have it."""
    return [
        f"train.deepspeed: {key!r} is no setting that training here knows, and is passed on"
        for key in settings or {}
        if key not in KEYS and not _misspelt(key)
    ]


def _misspelt(key: str) -> bool:
    return key not in KEYS and bool(get_close_matches(key, KEYS, cutoff=0.8))


def merged(settings: Mapping[str, Any] | None, defaults: Mapping[str, Any]) -> dict[str, Any]:
    """Return `defaults` with those of `settings` over them that allpairs has no key for."""
    result: dict[str, Any] = {}
    for path, value in (*_leaves(defaults), *_leaves(settings or {})):
        *sections, leaf = path.split(".")
        if sections[:1] and sections[0] in _OURS:
            continue
        node = result
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return result


def _ours(config: "Config") -> dict[str, tuple[str, Any]]:
    """Return, by DeepSpeed's names, what our keys say: the key and its value in DeepSpeed's terms."""
    train, optimizer = config.train, config.optimizer
    share = train.global_batch // config.cluster.workers
    precision = f"train.precision={train.precision}, bf16.enabled"
    return {
        "train_batch_size": ("train.global_batch", train.global_batch),
        "train_micro_batch_size_per_gpu": ("train.global_batch / cluster.workers", share),
        "gradient_accumulation_steps": ("the steps that train.micro_batch accumulates over", 1),
        "gradient_clipping": ("optimizer.clip_norm", optimizer.clip_norm or 0.0),
        "gradient_allreduce_op": ("what objectives count on", "mean"),
        "managed_gradient_accumulation": ("what train.micro_batch counts on", True),
        "bf16.enabled": (precision, train.precision == "bf16"),
        "fp16.enabled": (f"train.precision={train.precision}, fp16.enabled", False),
        "amp.enabled": (f"train.precision={train.precision}, amp.enabled", False),
        "torch_autocast.enabled": (f"train.precision={train.precision}, torch_autocast.enabled", False),
        "optimizer.type": ("the optimiser of allpairs", "AdamW"),
        "optimizer.params.lr": ("optimizer.lr", optimizer.lr),
        "optimizer.params.betas": ("optimizer.betas", list(optimizer.betas)),
        "optimizer.params.weight_decay": ("optimizer.weight_decay", optimizer.weight_decay),
        "optimizer.params.eps": ("AdamW's eps", 1e-8),
        "scheduler.type": ("optimizer.schedule", optimizer.schedule),
        "zero_force_ds_cpu_optimizer": ("what AdamW of torch needs", False),
        "zero_allow_untested_optimizer": ("what AdamW of torch needs", True),
        "zero_optimization.stage": ("train.zero_stage", train.zero_stage),
        "zero_optimization.zero_hpz_partition_size": ("what checkpoints hold", 1),
        "zero_optimization.zero_quantized_weights": ("what checkpoints hold", False),
        "zero_optimization.zero_quantized_nontrainable_weights": ("what checkpoints hold", False),
    }


def _leaves(node: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield what is set, by dotted paths; "auto" leaves it to us."""
    for key, value in node.items():
        place = f"{path}.{key}" if path else str(key)
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, place)
        elif value != "auto":
            yield place, value
