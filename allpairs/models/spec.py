"""What a dual encoder is made of: the only place where a model's knobs are declared.

Standard-library dataclasses, so that the library needs no validation package; two pydantic hooks, `__pydantic_config__`
and `__get_pydantic_core_schema__`, let a configuration tree that does use pydantic embed them, refuse unknown keys and
choose between kinds by their `kind` field.
"""

from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal, get_args

_STRICT: dict[str, Any] = {"extra": "forbid", "use_attribute_docstrings": True}


class _ByKind:
    """Annotation that makes pydantic choose a union's member by `kind`: its errors then speak of that member alone.

    With a `default`, a member without `kind` is of that kind.
    """

    def __init__(self, default: str | None = None) -> None:
        self.default = default

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> dict[str, Any]:
        choices = {kind: handler.generate_schema(member) for member in get_args(source) for kind in kinds(member)}
        return {"type": "tagged-union", "choices": choices, "discriminator": self._tag if self.default else "kind"}

    def _tag(self, value: Any) -> Any:
        return value.get("kind", self.default) if isinstance(value, dict) else getattr(value, "kind", self.default)


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


def _check_choice(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise ValueError(f"{name} is {value!r}; accepted: {', '.join(accepted)}")


def _check_network(spec: Any) -> None:
    """Check what every description of a transformers network has: `name`, `config` and `pretrained`."""
    if not isinstance(spec.name, str) or not spec.name:
        raise ValueError(f"name is {spec.name!r}; accepted: a hub id, a local folder or a transformers model type")
    _check_flag("pretrained", spec.pretrained)
    if spec.config is not None and spec.pretrained:
        raise ValueError("config describes a network with random weights; it needs pretrained: false")


def _check_folder(name: str, value: Any) -> None:
    if value is not None and (not isinstance(value, str) or not value):
        raise ValueError(f"{name} is {value!r}; accepted: a folder, or null")


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

    pool: Literal["auto", "mean", "first", "gpo"] = "auto"
    """One vector per image: "mean" of positions, "first" (class token), "gpo" (VSE∞'s learned weights of the sorted
    values, after the embedding layer), or "auto": the backbone's own, else mean."""

    drop: float = 0.0
    """With `pool: gpo`: share of the positions that training leaves out (VSE∞: 0.2)."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_network(self)
        _check_flag("freeze", self.freeze)
        _check_choice("pool", self.pool, ("auto", "mean", "first", "gpo"))
        _check_probability("drop", self.drop)
        if self.drop and self.pool != "gpo":
            raise ValueError(
                f"drop is {self.drop!r}; with pool: {self.pool} accepted is 0, positions are left out of gpo"
            )


@dataclass(frozen=True, kw_only=True)
class RegionsSpec:
    """Precomputed region features, e.g. bottom-up attention (`allpairs.models.regions`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["regions"] = "regions"

    features: int = 2048
    """Length of one region's feature vector."""

    pool: Literal["max", "gpo"] = "max"
    """One vector per image: the maximum over regions (VSE++), or VSE∞'s learned weights of the sorted values."""

    mlp: bool = False
    """Add a two-layer perceptron to the linear embedding of a region (VSE∞)."""

    drop: float = 0.0
    """Share of the regions that training leaves out, drawn anew for every picture and step (VSE∞: 0.2)."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("features", self.features, 1, 65_536)
        _check_choice("pool", self.pool, ("max", "gpo"))
        _check_flag("mlp", self.mlp)
        _check_probability("drop", self.drop)


@dataclass(frozen=True, kw_only=True)
class VsrnSpec:
    """Region features that reason about each other before they become one vector (`allpairs.models.vsrn`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["vsrn"] = "vsrn"

    features: int = 2048
    """Length of one region's feature vector."""

    layers: int = 4
    """Residual graph convolutions over the regions."""

    final_norm: bool = False
    """Batch normalisation of the image vector, as VSRN has it on Flickr30K."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("features", self.features, 1, 65_536)
        _check_integer("layers", self.layers, 1, 16)
        _check_flag("final_norm", self.final_norm)


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

    pool: Literal["auto", "gpo"] = "auto"
    """One vector per caption: "auto", as `kind` says, or for "bigru" also "gpo", VSE∞'s learned weights of the sorted
    values of its words."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_choice("pool", self.pool, ("auto", "gpo"))
        if self.pool == "gpo" and self.kind == "gru":
            raise ValueError("pool is 'gpo'; with kind: gru accepted is auto: the last state is the caption")
        _check_integer("embedding", self.embedding, 1, 65_536)
        _check_integer("layers", self.layers, 1, 8)
        _check_probability("word_dropout", self.word_dropout)


@dataclass(frozen=True, kw_only=True)
class TextTransformersSpec:
    """Any text model of the transformers library, with its own tokenizer (`allpairs.models.language`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["transformers"] = "transformers"

    name: str
    """A hub id ("bert-base-uncased") or a local folder; with `pretrained: false` also a model type ("bert", "roberta"),
    which has no tokenizer: the words are then those of the training captions."""

    config: dict[str, Any] | None = None
    """Arguments of the model type's configuration class; only with a model type as `name`."""

    pretrained: bool = True
    """Load the weights of the hub id or folder; false builds the same architecture with random weights."""

    freeze: bool = False
    """Keep the text model's weights and train the embedding layer alone."""

    pool: Literal["auto", "mean", "first", "gpo"] = "auto"
    """One vector per caption: "mean" of tokens, "first" token, "gpo" (VSE∞), or "auto": the model's own, else first."""

    drop: float = 0.0
    """Share of the tokens that training leaves out, the first and last excepted (VSE∞: 0.2)."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_network(self)
        _check_flag("freeze", self.freeze)
        _check_choice("pool", self.pool, ("auto", "mean", "first", "gpo"))
        _check_probability("drop", self.drop)


ImageSpec = Annotated[CnnSpec | TransformersSpec | RegionsSpec | VsrnSpec, _ByKind()]
TextSpec = Annotated[GruSpec | TextTransformersSpec, _ByKind()]


@dataclass(frozen=True, kw_only=True)
class DualSpec:
    """A dual encoder: one vector per image, one per caption, compared by their dot product."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["towers"] = "towers"

    image: ImageSpec
    """The image side."""

    text: TextSpec
    """The caption side."""

    dim: int = 1024
    """Length D of the joint embedding."""

    init_from: str | None = None
    """Folder of a finished or stopped run (its best checkpoint), or of one checkpoint, whose weights training starts
    from; the optimiser starts afresh. Its words, and a learned scale that the objective does not give, come along."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("dim", self.dim, 1, 65_536)
        _check_folder("init_from", self.init_from)


@dataclass(frozen=True, kw_only=True)
class WholeSpec:
    """A dual encoder of the transformers library with both towers: CLIP and its kin (`allpairs.models.whole`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["transformers"] = "transformers"

    name: str
    """A hub id ("openai/clip-vit-base-patch32") or a local folder; with `pretrained: false` also a model type ("clip",
    "siglip"), which has neither tokenizer nor preprocessing: words are then those of the training captions."""

    config: dict[str, Any] | None = None
    """Arguments of the model type's configuration class; only with a model type as `name`."""

    pretrained: bool = True
    """Load the weights of the hub id or folder; false builds the same architecture with random weights."""

    head: int | None = None
    """Length of the vectors that one added linear layer per tower gives; null: the model's own projections alone."""

    freeze: Literal["none", "image", "text", "both", "all"] = "none"
    """What keeps its weights: nothing, a tower, both towers (their projections still learn), or the whole model, which
    leaves only `head` to train."""

    init_from: str | None = None
    """As of two towers: a run's folder, or a checkpoint's, whose weights training starts from."""

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_network(self)
        _check_folder("init_from", self.init_from)
        if self.head is not None:
            _check_integer("head", self.head, 1, 65_536)
        _check_choice("freeze", self.freeze, ("none", "image", "text", "both", "all"))
        if self.freeze == "all" and self.head is None:
            raise ValueError("freeze: all leaves nothing to train; it needs head: a length such as 512")


ModelSpec = Annotated[DualSpec | WholeSpec, _ByKind("towers")]
"""Every model that trains."""


@dataclass(frozen=True, kw_only=True)
class EnsembleSpec:
    """Several nets of one description that are asked together (`allpairs.models.ensemble`); a recipe makes them."""

    member: DualSpec | WholeSpec
    """What each net is."""

    count: int
    """How many there are."""

    kind: Literal["ensemble"] = "ensemble"

    def __post_init__(self) -> None:
        _check_kind(self)
        _check_integer("count", self.count, 2, 64)


SavedSpec = DualSpec | WholeSpec | EnsembleSpec
"""Every model that is saved."""


def reads_regions(spec: DualSpec | WholeSpec) -> bool:
    """Say whether the image side takes precomputed region features rather than pictures."""
    return isinstance(spec, DualSpec) and isinstance(spec.image, RegionsSpec | VsrnSpec)
