"""A trained model as a folder of three files, none of which holds code: weights, description and vocabulary."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from allpairs.errors import UserError, nearest
from allpairs.files import replacing, write_json
from allpairs.models.dual import DualEncoder, build
from allpairs.models.spec import CnnSpec, DualSpec, GruSpec, RegionsSpec, TransformersSpec, kinds
from allpairs.models.vocabulary import Vocabulary

WEIGHTS, DESCRIPTION, VOCABULARY = "model.safetensors", "model.json", "vocabulary.json"
_FORMAT = 1


def save(folder: str | Path, model: DualEncoder, spec: DualSpec, vocabulary: Vocabulary) -> None:
    """Write `model`, the `spec` it was built from and its `vocabulary` into `folder`, which is made if need be.

    The description of a transformers backbone is written self-contained: loading needs no hub.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    # A backbone describes itself (a hub id says nothing offline); the other encoders are described by their spec.
    spec = dataclasses.replace(spec, image=getattr(model.image, "spec", spec.image))
    # safetensors stores plain row-major tensors; the channels-last layout is restored by loading into a fresh model.
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    with replacing(folder / WEIGHTS) as partial:
        save_file(weights, partial)
    vocabulary.save(folder / VOCABULARY)
    description = {"format": _FORMAT, "spec": dataclasses.asdict(spec)}
    write_json(folder / DESCRIPTION, description)


def load(folder: str | Path) -> tuple[DualEncoder, Vocabulary]:
    """Return the model, on the CPU and in evaluation mode, and the vocabulary that `save` wrote into `folder`.

    A UserError names the file that is missing, corrupt or does not fit the others. Nothing is unpickled.
    """
    folder = Path(folder)
    for name in (DESCRIPTION, VOCABULARY, WEIGHTS):
        if not (folder / name).is_file():
            raise UserError(f"checkpoint {folder}: no {name} in it")
    spec = _read_spec(folder / DESCRIPTION)
    vocabulary = Vocabulary.load(folder / VOCABULARY)
    try:
        weights = load_file(folder / WEIGHTS)
    except (SafetensorError, OSError) as error:
        raise UserError(f"checkpoint {folder / WEIGHTS}: not a safetensors file ({error})") from None
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten; the caller's draws must not move
        model = build(spec, len(vocabulary))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {folder / WEIGHTS}: does not fit {DESCRIPTION}: {reason}") from None
    return model.eval(), vocabulary


def _read_spec(path: Path) -> DualSpec:
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if description["format"] != _FORMAT:
            raise UserError(f"checkpoint {path}: format {description['format']!r}; accepted: {_FORMAT}")
        fields = dict(description["spec"])
        image = _of_kind(fields.pop("image"), CnnSpec, TransformersSpec, RegionsSpec)
        return _filled(DualSpec, {**fields, "image": image, "text": _of_kind(fields.pop("text"), GruSpec)})
    except UserError:
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path}: not a model description ({error})") from None


def _of_kind(fields: dict[str, Any], *members: type) -> Any:
    choices = {kind: member for member in members for kind in kinds(member)}
    kind = fields.get("kind", "")
    if kind not in choices:
        raise ValueError(f"unknown kind {kind!r}{nearest(kind, choices)}")
    return _filled(choices[kind], fields)


def _filled(cls: Any, fields: dict[str, Any]) -> Any:
    known = [field.name for field in dataclasses.fields(cls)]
    for name in fields:
        if name not in known:
            raise ValueError(f"unknown key {name!r}{nearest(name, known)}")
    return cls(**fields)
