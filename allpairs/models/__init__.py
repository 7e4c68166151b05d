"""Dual encoders: what they are made of (`DualSpec`), how they are built, their vocabulary, and saved models."""

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
