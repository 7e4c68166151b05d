import dataclasses
import subprocess
import sys

import pydantic
import pytest

from allpairs.models import (
    CnnSpec,
    DualSpec,
    GruSpec,
    RegionsSpec,
    TextTransformersSpec,
    TransformersSpec,
    VsrnSpec,
    WholeSpec,
)

ADAPTER = pydantic.TypeAdapter(DualSpec)


@pytest.mark.parametrize(
    ("make", "field"),
    [
        (lambda: CnnSpec(width=0), "width"),
        (lambda: CnnSpec(width=True), "width"),
        (lambda: CnnSpec(kind="regions"), "kind"),
        (lambda: RegionsSpec(features=0), "features"),
        (lambda: TransformersSpec(name=""), "name"),
        (lambda: TransformersSpec(name="vit", config={"hidden_size": 8}), "config"),
        (lambda: TransformersSpec(name="vit", pretrained=False, pool="max"), "pool"),
        (lambda: TransformersSpec(name="vit", freeze=1), "freeze"),
        (lambda: TransformersSpec(name="vit", pretrained=False, pool="mean", drop=0.2), "drop"),
        (lambda: RegionsSpec(pool="mean"), "pool"),
        (lambda: RegionsSpec(drop=1), "drop"),
        (lambda: VsrnSpec(layers=0), "layers"),
        (lambda: TextTransformersSpec(name="bert", pool="last"), "pool"),
        (lambda: WholeSpec(name="clip", freeze=True), "freeze"),
        (lambda: WholeSpec(name="clip", head=0), "head"),
        (lambda: WholeSpec(name="clip", freeze="all"), "freeze:"),
        (lambda: DualSpec(image=CnnSpec(), text=GruSpec(), init_from=""), "init_from"),
        (lambda: GruSpec(kind="lstm"), "kind"),
        (lambda: GruSpec(embedding=-1), "embedding"),
        (lambda: GruSpec(word_dropout=1.0), "word_dropout"),
        (lambda: DualSpec(image=CnnSpec(), text=GruSpec(), dim=0), "dim"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(make, field):
    with pytest.raises(ValueError, match=rf"^{field} "):
        make()


def test_specs_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        CnnSpec().width = 8


def test_pydantic_fills_a_spec_and_converts_what_an_override_gives_as_text():
    spec = ADAPTER.validate_python(
        {"image": {"kind": "cnn", "width": "24"}, "text": {"kind": "bigru", "word_dropout": 0.1}, "dim": 128}
    )
    assert spec == DualSpec(image=CnnSpec(width=24), text=GruSpec(kind="bigru", word_dropout=0.1), dim=128)
    assert ADAPTER.validate_python(spec) is spec


@pytest.mark.parametrize(
    ("image", "location", "kind"),
    [
        ({"kind": "cnn", "widht": 24}, ("image", "cnn", "widht"), "unexpected_keyword_argument"),
        ({"kind": "cnn", "width": "wide"}, ("image", "cnn", "width"), "int_parsing"),
        ({"kind": "cnn", "width": 1}, ("image", "cnn"), "value_error"),
        ({"kind": "cnm"}, ("image",), "union_tag_invalid"),
        ({"width": 24}, ("image",), "union_tag_not_found"),
        ({"kind": "transformers"}, ("image", "transformers", "name"), "missing"),
    ],
)
def test_pydantic_speaks_of_the_chosen_kind_alone(image, location, kind):
    with pytest.raises(pydantic.ValidationError) as caught:
        ADAPTER.validate_python({"image": image, "text": {"kind": "gru"}})
    assert [(error["loc"], error["type"]) for error in caught.value.errors()] == [(location, kind)]


def test_every_field_is_documented():
    for definition in ADAPTER.json_schema()["$defs"].values():
        for name, field in definition["properties"].items():
            # A kind with one value explains itself by the class.
            assert "description" in field or "const" in field, (definition["title"], name)


def test_the_models_do_not_import_pydantic_or_transformers():
    code = "import sys, allpairs.models; print({'pydantic', 'transformers', 'torchvision'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
