"""What of a model's networks can be checked before anything is built, where a mistake costs a second."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import nn

from allpairs.errors import UserError
from allpairs.files import existing
from allpairs.models.build import build
from allpairs.models.hub import NetworkSpec, configuration, is_model_type, quietly
from allpairs.models.spec import DualSpec, GruSpec, TextTransformersSpec, TransformersSpec, WholeSpec

WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Files of which a folder of the transformers library has one."""


def check_networks(spec: DualSpec | WholeSpec, say: Callable[[str], None] = lambda text: None) -> None:
    """Find the configuration of every transformers network of `spec`, and in a local folder its files.

    `say` hears of a hub that is asked: one that cannot be reached is asked several times, which takes half a minute.

    Raises:
        UserError: no such model type, hub id or folder, an argument that it has not, a folder without weights,
            a hub that does not answer.
    """
    for key, network in _networks(spec):
        local = Path(network.name).is_dir()
        if not local and not is_model_type(network):
            if network.name.startswith((".", "/")) or network.name.count("/") > 1:  # no hub has such a name
                _existing_folder(network.name, f"{key}.name")
            say(f"{key}.name: no folder {network.name!r} here, asking the hub")
        configuration(network, key)
        if local and network.pretrained and not any((Path(network.name) / name).exists() for name in WEIGHTS):
            raise UserError(
                f"{key}.name: {network.name!r} has no weights: none of {', '.join(WEIGHTS)} is in it; "
                "with pretrained: false they are random"
            )


def _existing_folder(name: str, key: str) -> None:
    try:
        existing(Path(name))
    except UserError as error:
        raise UserError(f"{key}: {error}") from None


def _networks(spec: DualSpec | WholeSpec) -> Iterator[tuple[str, NetworkSpec]]:
    """Yield the networks with their places in the configuration."""
    if isinstance(spec, WholeSpec):
        yield "model", spec
        return
    for key, tower in (("model.image", spec.image), ("model.text", spec.text)):
        if isinstance(tower, TransformersSpec | TextTransformersSpec):
            yield key, tower


def skeleton(spec: DualSpec | WholeSpec) -> nn.ModuleDict:
    """Return the modules of a model's image side and networks, frozen ones so: what they are can be asked beforehand.

    They lie on torch's meta device: nothing is loaded, and no weights are made.

    Raises:
        UserError: as `check_networks`.
    """
    from transformers import AutoModel

    parts = nn.ModuleDict()
    with torch.device("meta"), quietly():
        for key, network in _networks(spec):
            made = AutoModel.from_config(configuration(network, key, _TOWERS.get(key)))
            frozen = network.freeze in (True, "image", "both", "all")
            place = key.removeprefix("model").removeprefix(".") or "model"
            parts[place] = nn.ModuleDict({"backbone": made.requires_grad_(not frozen)})
        if isinstance(spec, DualSpec) and "image" not in parts:
            parts["image"] = build(dataclasses.replace(spec, text=GruSpec()), vocabulary_size=2).image
    return parts


_TOWERS = {"model.image": "vision", "model.text": "text"}
