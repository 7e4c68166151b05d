"""Names, arguments and calls that cannot be right are refused with what is accepted."""

import inspect
import subprocess
import sys
from typing import Literal, get_args, get_origin

import pytest
import torch

from allpairs.errors import UserError
from allpairs.objectives import PairObjective, arguments, from_scores, make, names


def test_names_and_defaults():
    assert names() == ["triplet", "triplet_hn", "unified", "vlc"]
    for name in names():
        objective = make(name)
        assert isinstance(objective, PairObjective)
        assert objective(torch.eye(3), torch.eye(3)).ndim == 0
    assert make("triplet").margin == make("triplet_hn").margin == make("unified").margin == 0.2
    assert make("unified").scale == 60.0
    assert make("vlc").scale == 1 / 0.07


def test_arguments_describe_what_make_accepts():
    assert list(arguments("unified")) == ["margin", "scale", "weighting", "reduction", "normalize"]
    scale = arguments("vlc")["scale"]
    assert scale.kind is inspect.Parameter.KEYWORD_ONLY
    assert (scale.annotation, scale.default) == (float, 1 / 0.07)
    assert arguments("vlc")["learn_scale"].annotation is bool
    reduction = arguments("triplet")["reduction"].annotation
    assert get_origin(reduction) is Literal
    assert get_args(reduction) == ("mean", "sum")
    for name in names():
        for argument, parameter in arguments(name).items():
            make(name, **{argument: parameter.default})


@pytest.mark.parametrize(
    ("name", "given", "message"),
    [
        ("unifed", {}, "unknown objective 'unifed'; did you mean 'unified'?"),
        ("contrastive", {}, "accepted: triplet, triplet_hn, unified, vlc"),
        ("unified", {"margn": 0.2}, "objective 'unified' has no argument 'margn'; did you mean 'margin'?"),
        ("triplet", {"learn_scale": True}, "objective 'triplet' has no argument 'learn_scale'; accepted: margin,"),
        ("unified", {"scale": -1.0}, "scale=-1.0 is impossible; accepted: a finite number above 0"),
        ("unified", {"scale": 0}, "scale=0 is impossible"),
        ("vlc", {"scale": float("nan")}, "scale=nan is impossible"),
        ("vlc", {"scale": float("inf")}, "scale=inf is impossible"),
        ("vlc", {"scale": 101.0, "learn_scale": True}, "scale=101.0 is impossible; accepted: a number above 0 and at"),
        ("vlc", {"learn_scale": 1}, "learn_scale=1 is impossible; accepted: true or false"),
        ("triplet", {"margin": 2.5}, "margin=2.5 is impossible; accepted: a number from -2 to 2"),
        ("triplet_hn", {"margin": "0.2"}, "margin='0.2' is impossible"),
        ("unified", {"margin": True}, "margin=True is impossible"),
        ("unified", {"weighting": "linear"}, "weighting='linear' is unknown; accepted: none"),
        ("vlc", {"reduction": "means"}, "reduction='means' is unknown; did you mean 'mean'?"),
        ("vlc", {"reduction": None}, "reduction=None is impossible; accepted: one of mean, sum"),
        ("vlc", {"normalize": "no"}, "normalize='no' is impossible"),
    ],
)
def test_refused_names_and_arguments(name, given, message):
    with pytest.raises(UserError) as raised:
        make(name, **given)
    assert message in str(raised.value)


PAIR = torch.eye(3)


@pytest.mark.parametrize(
    ("queries", "candidates", "given", "message"),
    [
        (PAIR, torch.eye(3)[:2], {}, "queries [3, 3] and candidates [2, 3]: row i must match row i"),
        (PAIR, torch.ones(3, 4), {}, "same embedding size"),
        (PAIR[0], PAIR, {}, "queries: floating-point embeddings [B, D] are accepted, not float32 [3]"),
        (PAIR, PAIR.long(), {}, "candidates: floating-point embeddings [B, D] are accepted, not int64 [3, 3]"),
        (PAIR[:0], PAIR[:0], {}, "at least one pair"),
        (PAIR, PAIR, {"query_ids": torch.arange(4)}, "query_ids: one integer per pair, [3], is accepted"),
        (PAIR, PAIR, {"candidate_ids": torch.ones(3)}, "candidate_ids: one integer per pair"),
        (
            PAIR,
            PAIR,
            {"query_ids": torch.tensor([1, 2, 3]), "candidate_ids": torch.tensor([1, 15, 3])},
            "query_ids[1] is 2 but candidate_ids[1] is 15",
        ),
        (PAIR, PAIR, {"margins": torch.ones(2)}, "margins: one number per pair, [3], is accepted"),
        (PAIR, PAIR, {"backend": "tilde"}, "backend='tilde' is unknown; accepted: auto, dense"),
    ],
)
def test_refused_calls(queries, candidates, given, message):
    with pytest.raises(UserError) as raised:
        make("unified")(queries, candidates, **given)
    assert message in str(raised.value)


def test_refused_margins_of_an_objective_without_margin():
    for call in (
        make("vlc"),
        make("vlc").pair_weights,
        lambda *_, margins: from_scores(make("vlc"), PAIR, margins=margins),
    ):
        with pytest.raises(UserError, match="VLC has no margin"):
            call(PAIR, PAIR, margins=torch.ones(3))


@pytest.mark.parametrize("scores", [torch.ones(2, 3), torch.ones(3), torch.ones(0, 0), torch.ones(2, 2).long()])
def test_refused_scores(scores):
    with pytest.raises(UserError, match="scores: a floating-point matrix"):
        from_scores(make("vlc"), scores)


def test_importing_the_objectives_needs_torch_alone():
    code = "import sys, allpairs.objectives; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert not {"transformers", "tokenizers", "ray", "faiss", "wandb", "deepspeed", "pydantic", "PIL"} & set(loaded)
