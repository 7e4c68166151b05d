"""Dual encoders: what they are made of (`ModelSpec`), how they are built, their words, and saved models.

- `spec`: every knob of a model.
- `dual`: two encoders that share one space; `whole`: CLIP and its kin, both towers of one pretrained model.
- `ensemble`: several dual encoders asked together, as one.
- `build`: from a description to a model; `hub`: networks of the transformers library, from a hub, a folder, a type;
  `check`: what can be said of them before anything is built.
- `cnn`, `backbone`, `regions`, `vsrn`: image encoders; `pixels`, `preprocessing`, `patches`: what they
  expect of a picture.
- `text`, `language`: caption encoders; `vocabulary`, `tokenizer`: their words.
- `pooling`: from a set of vectors to one.
- `checkpoint`: a model as a folder; `pieces`: its weights, whole or as several processes held them.
"""

from allpairs.models.build import build
from allpairs.models.check import check_networks, skeleton
from allpairs.models.checkpoint import DESCRIPTION, MODEL, WEIGHTS, export, load, read_spec, save, save_description
from allpairs.models.dual import DualEncoder
from allpairs.models.ensemble import Ensemble
from allpairs.models.hub import recompute_activations
from allpairs.models.spec import (
    CnnSpec,
    DualSpec,
    GruSpec,
    ImageSpec,
    ModelSpec,
    RegionsSpec,
    TextSpec,
    TextTransformersSpec,
    TransformersSpec,
    VsrnSpec,
    WholeSpec,
    reads_regions,
)
from allpairs.models.tokenizer import (
    PretrainedTokenizer,
    Tokens,
    check_text,
    load_tokens,
    make_tokens,
    save_tokens,
)
from allpairs.models.vocabulary import Vocabulary

__all__ = [
    "DESCRIPTION",
    "MODEL",
    "WEIGHTS",
    "CnnSpec",
    "DualEncoder",
    "DualSpec",
    "Ensemble",
    "GruSpec",
    "ImageSpec",
    "ModelSpec",
    "PretrainedTokenizer",
    "RegionsSpec",
    "TextSpec",
    "TextTransformersSpec",
    "Tokens",
    "TransformersSpec",
    "Vocabulary",
    "VsrnSpec",
    "WholeSpec",
    "build",
    "check_networks",
    "check_text",
    "export",
    "load",
    "load_tokens",
    "make_tokens",
    "read_spec",
    "reads_regions",
    "recompute_activations",
    "save",
    "save_description",
    "save_tokens",
    "skeleton",
]
