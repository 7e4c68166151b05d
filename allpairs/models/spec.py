"""What a dual encoder is made of: the only place where a model's knobs are declared.

Standard-library dataclasses, so that the library needs no validation package; two pydantic hooks, `__pydantic_config__`
and `__get_pydantic_core_schema__`, let a configuration tree that does use pydantic embed them, refuse unknown keys and
choose between kinds by their `kind` field.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


class _ByKind:
    """Annotation that makes pydantic choose a union's member by `kind`: its errors then speak of that member alone."""

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        choices = {kind: handler.generate_schema(member) for member in get_args(source) for kind in kinds(member)}
        return {"type": "tagged-union", "choices": choices, "discriminator": "kind"}


def kinds(member: type) -> tuple[str, ...]:
    """Return the values that the `kind` field of a spec class accepts."""
    return get_args(member.__annotations__["kind"])


def _check_kind(spec: Any) -> None:
    if spec.kind not in kinds(type(spec)):
        raise ValueError(f"kind is {spec.kind!r}; accepted: {', '.join(kinds(type(spec)))}")


def _check_integer(name: str, value: Any, lowest: int, highest: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or not lowest <= value <= highest:
        raise ValueError(f"{name} is {value!r}; accepted: an integer from {lowest} to {highest}")


def _check_probability(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ValueError(f"{name} is {value!r}; accepted: a number from 0 up to, not including, 1")


def _check_flag(name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise ValueError(f"{name} is {value!r}; accepted: true or false")


@dataclass(frozen=True, kw_only=True)
class CnnSpec:
    """A small convolutional network of ours for small pictures and CPUs (`allpairs.models.cnn`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["cnn"] = "cnn"

    width: int = 48
    """Channels of the first block; every later block doubles them."""

    blocks: int = 3
    """Number of blocks; the first sees patches of 4×4 pixels, every later one halves height and width."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("width", self.width, 4, 512)
        _check_integer("blocks", self.blocks, 1, 6)


@dataclass(frozen=True, kw_only=True)
class TransformersSpec:
    """Any vision backbone of the transformers library (`allpairs.models.backbone`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["transformers"] = "transformers"

    name: str
    """A hub id ("microsoft/resnet-50"), a local folder or, with `pretrained: false`, a model type ("resnet", "vit")."""

    config: dict[str, Any] | None = None
    """Arguments of the model type's configuration class; only with a model type as `name`."""

    pretrained: bool = True
    """Load the weights of the hub id or folder; false builds the same architecture with random weights."""

    freeze: bool = False
    """Keep the backbone's weights and batch statistics and train the embedding layer alone (VSE++'s first step)."""

    pool: Literal["auto", "mean", "first"] = "auto"
    """One vector per image: "mean" of positions, "first" (class token), or "auto": the backbone's own, else mean."""

    def __post_init__(self) -> None:
        _check_kind(self)
        if not isinstance(self.name, str) or not self.name:
            raise ValueError(f"name is {self.name!r}; accepted: a hub id, a local folder or a transformers model type")
        _check_flag("pretrained", self.pretrained)
        _check_flag("freeze", self.freeze)
        if self.config is not None and self.pretrained:
            raise ValueError("config describes a network with random weights; it needs pretrained: false")
        if self.pool not in ("auto", "mean", "first"):
            raise ValueError(f"pool is {self.pool!r}; accepted: auto, mean, first")


@dataclass(frozen=True, kw_only=True)
class RegionsSpec:
    """Precomputed region features, e.g. bottom-up attention (`allpairs.models.regions`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["regions"] = "regions"

    features: int = 2048
    """Length of one region's feature vector."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("features", self.features, 1, 65_536)


@dataclass(frozen=True, kw_only=True)
class GruSpec:
    """A recurrent caption encoder (`allpairs.models.text`); its hidden size is the model's `dim`."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["gru", "bigru"] = "gru"
    """"gru": last state of a forward reading (VSE++); "bigru": maximum over words of the mean of both readings."""

    embedding: int = 300
    """Length of a word's vector."""

    layers: int = 1
    """Recurrent layers on top of each other."""

    word_dropout: float = 0.0
    """Probability with which a training word is replaced by the unknown word."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("embedding", self.embedding, 1, 65_536)
        _check_integer("layers", self.layers, 1, 8)
        _check_probability("word_dropout", self.word_dropout)


ImageSpec = Annotated[CnnSpec | TransformersSpec | RegionsSpec, _ByKind()]
TextSpec = GruSpec


@dataclass(frozen=True, kw_only=True)
class DualSpec:
    """A dual encoder: one vector per image, one per caption, compared by their dot product."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    image: ImageSpec
    """The image side."""

    text: TextSpec
    """The caption side."""

    dim: int = 1024
    """Length D of the joint embedding."""

    def __post_init__(self) -> None:
        _check_integer("dim", self.dim, 1, 65_536)
