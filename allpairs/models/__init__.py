"""Dual encoders: what they are made of (`DualSpec`), how they are built, their vocabulary, and saved models.

- `spec`: every knob of a model.
- `dual`: two encoders that share one space, and `build`.
- `cnn`, `backbone`, `regions`: image encoders; `pixels`: what they expect of a picture.
- `text`, `vocabulary`: caption encoders and their words.
- `checkpoint`: a model as a folder.
"""

from allpairs.models.checkpoint import load, save
from allpairs.models.dual import DualEncoder, build
from allpairs.models.spec import CnnSpec, DualSpec, GruSpec, ImageSpec, RegionsSpec, TextSpec, TransformersSpec
from allpairs.models.vocabulary import Vocabulary

__all__ = [
    "CnnSpec",
    "DualEncoder",
    "DualSpec",
    "GruSpec",
    "ImageSpec",
    "RegionsSpec",
    "TextSpec",
    "TransformersSpec",
    "Vocabulary",
    "build",
    "load",
    "save",
]
