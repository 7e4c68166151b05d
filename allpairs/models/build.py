"""From the description of a model to the model."""

from torch import nn

from allpairs.models.cnn import CnnEncoder
from allpairs.models.dual import DualEncoder
from allpairs.models.ensemble import Ensemble
from allpairs.models.regions import RegionsEncoder
from allpairs.models.spec import (
    CnnSpec,
    EnsembleSpec,
    GruSpec,
    ImageSpec,
    RegionsSpec,
    SavedSpec,
    TextSpec,
    VsrnSpec,
    WholeSpec,
)
from allpairs.models.text import GruEncoder
from allpairs.models.vsrn import VsrnEncoder


def build(spec: SavedSpec, vocabulary_size: int) -> DualEncoder:
    """Build the model that `spec` describes for a vocabulary of that many tokens, initialised from torch's global seed.

    A UserError says which network could not be loaded, and why.
    """
    if isinstance(spec, EnsembleSpec):
        return Ensemble([build(spec.member, vocabulary_size) for _ in range(spec.count)])
    if isinstance(spec, WholeSpec):
        from allpairs.models.whole import WholeEncoder

        return WholeEncoder(spec, vocabulary_size)
    return DualEncoder(
        _image_encoder(spec.image, spec.dim), _text_encoder(spec.text, spec.dim, vocabulary_size), spec.dim
    )


def _image_encoder(spec: ImageSpec, dim: int) -> nn.Module:
    if isinstance(spec, CnnSpec):
        return CnnEncoder(spec, dim)
    if isinstance(spec, RegionsSpec):
        return RegionsEncoder(spec, dim)
    if isinstance(spec, VsrnSpec):
        return VsrnEncoder(spec, dim)
    from allpairs.models.backbone import BackboneEncoder

    return BackboneEncoder(spec, dim)


def _text_encoder(spec: TextSpec, dim: int, vocabulary_size: int) -> nn.Module:
    if isinstance(spec, GruSpec):
        return GruEncoder(spec, dim, vocabulary_size)
    from allpairs.models.language import LanguageEncoder

    return LanguageEncoder(spec, dim, vocabulary_size)
