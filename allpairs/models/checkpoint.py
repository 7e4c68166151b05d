"""A trained model as a folder that needs nothing else, and in which no file holds code.

model.safetensors (or, of a training that shares the weights, model/ with each rank's: `pieces`), model.json (its
description), vocabulary.json or the tokenizer's files in tokenizer/, and, of a whole pretrained model, its image
preprocessing: preprocessor_config.json.
"""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from allpairs.errors import UserError, nearest
from allpairs.files import replacing, write_json
from allpairs.hashes import HASHES, check_files
from allpairs.models.build import build
from allpairs.models.dual import DualEncoder
from allpairs.models.pieces import SavedPieces, has_weights, join_pieces, read_weights
from allpairs.models.preprocessing import FILE as PREPROCESSING
from allpairs.models.preprocessing import ImagePreprocessing
from allpairs.models.spec import (
    CnnSpec,
    DualSpec,
    EnsembleSpec,
    GruSpec,
    ModelSpec,
    RegionsSpec,
    SavedSpec,
    TextTransformersSpec,
    TransformersSpec,
    VsrnSpec,
    WholeSpec,
    kinds,
)
from allpairs.models.tokenizer import FOLDER as TOKENIZER
from allpairs.models.tokenizer import VOCABULARY, Tokens, load_tokens, save_tokens

MODEL, DESCRIPTION = "model", "model.json"
WEIGHTS = f"{MODEL}.safetensors"
_FORMAT = 2
_BEFORE = 1
"""The format whose built-in CNN had batch normalisation; everything else is as it was."""


def save(folder: str | Path, model: DualEncoder, spec: ModelSpec, vocabulary: Tokens) -> None:
    """Write `model`, the `spec` it was built from and its `vocabulary` into `folder`, which is made if need be.

    The description of transformers networks is written self-contained: loading needs no hub.
    """
    folder = Path(folder)
    save_description(folder, model, spec, vocabulary)
    # safetensors stores plain row-major tensors; the channels-last layout is restored by loading into a fresh model.
    with replacing(folder / WEIGHTS) as partial:
        save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, partial)


def save_description(folder: Path, model: DualEncoder, spec: ModelSpec, vocabulary: Tokens) -> None:
    """Write what `save` does but for the weights, which come from elsewhere (`pieces`)."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / HASHES).unlink(missing_ok=True)  # of what was there before
    save_tokens(folder, vocabulary)
    if model.preprocessing is not None:
        model.preprocessing.save(folder)
    description = {"format": _FORMAT, "spec": dataclasses.asdict(model.described(spec))}
    write_json(folder / DESCRIPTION, description)


def export(source: Path, folder: Path) -> None:
    """Write the model that `source` holds into `folder`, its weights in one file, whoever wrote them.

    No more than one tensor is in memory. Raises as `pieces.join_pieces`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in (DESCRIPTION, VOCABULARY, PREPROCESSING, WEIGHTS):
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    if (source / TOKENIZER).is_dir():
        shutil.copytree(source / TOKENIZER, folder / TOKENIZER)
    if not (folder / WEIGHTS).exists():
        join_pieces(SavedPieces(source, MODEL), folder / WEIGHTS)


def load(folder: str | Path) -> tuple[DualEncoder, Tokens]:
    """Return the model, on the CPU and in evaluation mode, and the vocabulary that `save` wrote into `folder`.

    A UserError names the file that is missing, corrupt, does not fit the others or, where hashes lie beside it
    (`allpairs.hashes`), is not what was written. Nothing is unpickled.
    """
    folder = Path(folder)
    words = TOKENIZER if (folder / TOKENIZER).is_dir() else VOCABULARY
    for name in (DESCRIPTION, words, WEIGHTS):
        if not (folder / name).exists() and not (name == WEIGHTS and has_weights(folder, MODEL)):
            raise UserError(f"checkpoint {folder}: no {name} in it")
    check_files(folder, (DESCRIPTION, words, WEIGHTS, MODEL, PREPROCESSING))
    spec = read_spec(folder)
    vocabulary = load_tokens(folder, spec.member if isinstance(spec, EnsembleSpec) else spec)
    try:
        weights = read_weights(folder, MODEL)
    except UserError as error:
        raise UserError(f"checkpoint {error}") from None
    with torch.random.fork_rng(devices=[]):  # the initial weights are overwritten; the caller's draws must not move
        model = build(spec, len(vocabulary))
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"checkpoint {folder / WEIGHTS}: does not fit {DESCRIPTION}: {reason}") from None
    if (folder / PREPROCESSING).is_file():
        model.preprocessing = ImagePreprocessing.load(str(folder), None)
    return model.eval(), vocabulary


def read_spec(folder: Path) -> SavedSpec:
    """Return the description of the model that `save` wrote into `folder`.

    A UserError says what is wrong with it, or that this version cannot build that model any more.
    """
    path = folder / DESCRIPTION
    try:
        description = json.loads(path.read_text(encoding="utf-8"))
        if description["format"] not in (_BEFORE, _FORMAT):
            raise UserError(f"checkpoint {path}: format {description['format']!r}; accepted: {_BEFORE}, {_FORMAT}")
        fields = description["spec"]
        if fields.get("kind") == "ensemble":
            spec: SavedSpec = _filled(EnsembleSpec, {**fields, "member": _of_one(fields["member"])})
        else:
            spec = _of_one(fields)
        if description["format"] == _BEFORE and _has_cnn(spec):
            raise UserError(
                f"checkpoint {path}: its CNN has batch normalisation (format {_BEFORE}), which this version's has not; "
                "train it anew under another run.name, or load it with the version that wrote it (a run's "
                "provenance.json names its git_commit)"
            )
        return spec
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {path}: not a model description ({error})") from None


def _has_cnn(spec: SavedSpec) -> bool:
    one = spec.member if isinstance(spec, EnsembleSpec) else spec
    return isinstance(one, DualSpec) and isinstance(one.image, CnnSpec)


def _of_one(fields: dict[str, Any]) -> ModelSpec:
    fields = {"kind": "towers", **fields}
    if fields["kind"] != "towers":
        return _of_kind(fields, WholeSpec)
    image = _of_kind(fields.pop("image"), CnnSpec, TransformersSpec, RegionsSpec, VsrnSpec)
    text = _of_kind(fields.pop("text"), GruSpec, TextTransformersSpec)
    return _filled(DualSpec, {**fields, "image": image, "text": text})


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
