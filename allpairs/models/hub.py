"""Networks and configurations of the transformers library: from a hub id, a local folder, or a model type alone."""

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from allpairs.errors import UserError, nearest
from allpairs.models.spec import TextTransformersSpec, TransformersSpec, WholeSpec

NetworkSpec = TransformersSpec | TextTransformersSpec | WholeSpec

# Of a saved configuration, what says where it came from rather than what the network is.
_PROVENANCE = ("transformers_version", "architectures", "dtype", "_name_or_path")


@contextmanager
def quietly() -> Iterator[None]:
    """Keep the libraries' progress bars and warnings to themselves: what matters is told as one UserError.

    Among the warnings are one per attempt to reach a hub, and the ids of a model type's default vocabulary.
    """
    from transformers.utils import logging as library

    loggers = [logging.getLogger(name) for name in ("transformers", "huggingface_hub")]
    levels, bars = [logger.level for logger in loggers], library.is_progress_bar_enabled()
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    library.disable_progress_bar()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        if bars:
            library.enable_progress_bar()


def is_model_type(spec: NetworkSpec) -> bool:
    """Say whether `spec.name` is a model type: random weights, and neither tokenizer nor preprocessing."""
    from transformers import CONFIG_MAPPING

    return spec.config is not None or (not spec.pretrained and spec.name in CONFIG_MAPPING)


def configuration(spec: NetworkSpec, key: str, tower: str | None = None) -> Any:
    """Return the configuration that `spec` names; of a dual encoder that of its `tower` ("vision", "text").

    Raises:
        UserError: it cannot be had; the message begins with `key`, the place in the user's configuration.
    """
    from transformers import AutoConfig

    if is_model_type(spec):
        config = _of_model_type(spec, key)
    else:
        try:
            with quietly():
                config = AutoConfig.from_pretrained(spec.name)
        except (OSError, ValueError, ImportError) as error:
            raise UserError(_not_loaded(spec, key, error)) from None
    return config if tower is None else getattr(config, f"{tower}_config", config)


def network(spec: NetworkSpec, key: str, tower: str | None = None) -> Any:
    """Return the network of `spec` (or its `tower` alone), in float32, with its weights unless they are to be random.

    A pooling head that the weights lack is left out: many checkpoints ship without it, and a random one would only
    scramble the features.

    Raises:
        UserError: as `configuration`, or the weights lack tensors.
    """
    from transformers import AutoModel

    config = configuration(spec, key, tower)
    try:
        if not spec.pretrained:
            return AutoModel.from_config(config)
        with quietly():
            model, report = AutoModel.from_pretrained(
                spec.name, config=config, dtype=torch.float32, output_loading_info=True
            )
    except (OSError, ValueError, ImportError) as error:
        raise UserError(_not_loaded(spec, key, error)) from None
    missing = set(report["missing_keys"])
    if any(name.startswith("pooler.") for name in missing):
        model.pooler = None
        missing = {name for name in missing if not name.startswith("pooler.")}
    if missing:
        raise UserError(f"{key}.name: the weights of {spec.name!r} lack {len(missing)} tensors, e.g. {min(missing)}")
    for parameter in model.parameters():
        # Weights lie mapped from the file, at addresses where some products round otherwise than in memory of our own.
        parameter.data = parameter.data.clone()
    return model


def recompute_activations(encoder: nn.Module) -> None:
    """Have the transformers networks in `encoder` keep a layer's input alone and compute its inside again backwards.

    Less memory, about a third more time, the same gradients: dropout draws the same masks again.

    Raises:
        UserError: there is no such network, or one that cannot.
    """
    from transformers import PreTrainedModel

    networks = [part for name, part in encoder.named_modules() if name.rpartition(".")[2] == "backbone"]
    networks = [part for part in networks if isinstance(part, PreTrainedModel)]
    unable = [part.config.model_type for part in networks if not part.supports_gradient_checkpointing]
    if unable or not networks:
        what = f"{unable[0]!r} cannot" if unable else "this model has no network of transformers that could"
        raise UserError(f"train.activation_checkpointing=true: {what}; accepted: false")
    for part in networks:
        part.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})


def self_contained(network: Any) -> dict[str, Any]:
    """Return what rebuilds the architecture of `network` without the hub: `name` (its model type) and `config`."""
    settings = _without_provenance(network.config.to_dict(), (*_PROVENANCE, "model_type"))
    return {"name": network.config.model_type, "config": settings, "pretrained": False}


def _without_provenance(settings: dict[str, Any], names: Collection[str] = _PROVENANCE) -> dict[str, Any]:
    return {
        name: _without_provenance(value) if isinstance(value, dict) else value
        for name, value in settings.items()
        if name not in names
    }


def _of_model_type(spec: NetworkSpec, key: str) -> Any:
    from transformers import CONFIG_MAPPING

    if spec.name not in CONFIG_MAPPING:
        raise UserError(f"{key}.name: no transformers model type {spec.name!r}{nearest(spec.name, CONFIG_MAPPING)}")
    settings = spec.config or {}
    with quietly():
        accepted = CONFIG_MAPPING[spec.name]()
    for name in settings:
        if not hasattr(accepted, name):
            raise UserError(f"{key}.config: {spec.name!r} has no {name!r}{nearest(name, accepted.to_dict())}")
    try:
        return CONFIG_MAPPING[spec.name](**settings)
    except Exception as error:  # the library's checks raise exceptions of several packages
        reason = " ".join(str(error).split())
        raise UserError(f"{key}.config: not a configuration of {spec.name!r}: {reason}") from None


def _not_loaded(spec: NetworkSpec, key: str, error: Exception) -> str:
    from transformers import CONFIG_MAPPING

    tried = "local folder" if Path(spec.name).is_dir() else "local folder (there is none) and hub id"
    example = nearest(spec.name, CONFIG_MAPPING) if "/" not in spec.name and not Path(spec.name).is_dir() else ""
    example = example if "did you mean" in example else ""
    return (
        f"{key}.name: could not load {spec.name!r}; tried as {tried}: {str(error).strip().splitlines()[0]} "
        f"Without the hub, give a local folder, or pretrained: false with a model type{example or _EXAMPLES[key]}."
    )


_EXAMPLES = {
    "model.image": " such as 'resnet' or 'vit'",
    "model.text": " such as 'bert' or 'roberta'",
    "model": " such as 'clip' or 'siglip'",
}
