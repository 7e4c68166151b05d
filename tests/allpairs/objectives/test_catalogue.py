"""Names, arguments and calls that cannot be right are refused with what is accepted."""

import inspect
import subprocess
import sys
from pathlib import Path
from typing import Literal, get_args, get_origin

import pytest
import torch

from allpairs.errors import UserError
from allpairs.objectives import PairObjective, arguments, from_scores, make, names
from tests.allpairs.objectives import cases

ROOT = Path(__file__).parents[3]

# What the specification promises, in its order; every objective also takes reduction= and normalize=.
PROMISED = {
    "binomial_deviance": {"alpha": 2.0, "beta": 40.0, "threshold": 0.5},
    "circle": {"margin": 0.25, "scale": 256.0},
    "goal": {
        "triplet": "con",
        "pair": "con",
        "margin": 0.2,
        "tau": 10.0,
        "alpha": 2.0,
        "beta": 10.0,
        "threshold": 0.5,
        "epsilon": 0.1,
        "offset": 0.0,
    },
    "lifted": {"alpha": 40.0, "beta": 2.0},
    "multi_similarity": {"alpha": 2.0, "beta": 40.0, "threshold": 0.5, "epsilon": 0.1},
    "nt_xent": {"temperature": 0.1},
    "nt_xent_hn": {"tau": 10.0},
    "rsp": {"margin": 0.2, "coefficients": (0.0, 1.0, 0.0)},
    "siglip": {"scale": 10.0, "bias": -10.0, "learn_scale": False},
    "smooth_ap": {"temperature": 0.01},
    "ssp": {"margin": 0.2, "positive": (0.5, -0.7, 0.2), "negative": (0.03, -0.4, 0.9)},
    "triplet": {"margin": 0.2},
    "triplet_hn": {"margin": 0.2},
    "unified": {
        "margin": 0.2,
        "scale": 60.0,
        "weighting": "none",
        "alpha": 2.0,
        "beta": 10.0,
        "threshold": 0.5,
        "positive": (0.5, -0.7, 0.2),
        "negative": (0.03, -0.4, 0.9),
        "coefficients": (0.0, 1.0, 0.0),
        "detach_weights": True,
    },
    "vlc": {"scale": 1 / 0.07, "learn_scale": False},
}


def test_names_and_defaults():
    assert names() == sorted(PROMISED) == sorted(cases.TABLE), "every objective has its line in cases.TABLE"
    for name, promised in PROMISED.items():
        defaults = {argument: parameter.default for argument, parameter in arguments(name).items()}
        assert defaults == {**promised, "reduction": "mean", "normalize": True}
        assert list(defaults) == [*promised, "reduction", "normalize"]
        objective = make(name)
        assert isinstance(objective, PairObjective)
        assert objective(torch.eye(3), torch.eye(3)).ndim == 0


def test_arguments_describe_what_make_accepts():
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
        ("clip", {}, "unknown objective 'clip'; 'vlc' with learn_scale=True is twice CLIP's value"),
        ("InfoNCE", {}, "; 'nt_xent' is twice its mean over both directions"),
        ("ntxent_loss", {}, "; 'nt_xent' is twice the mean over all 2B anchors"),
        ("sup-con", {}, "; 'smooth_ap' and 'lifted' are the nearest"),
        ("vse++", {}, "; 'triplet_hn' is VSE++'s loss"),
        ("contrastive", {}, "accepted: " + ", ".join(sorted(PROMISED))),
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
        ("unified", {"weighting": "cubic"}, "weighting='cubic' is unknown; accepted: linear, none, rsp, sigmoid, ssp"),
        ("unified", {"weighting": "linaer"}, "weighting='linaer' is unknown; did you mean 'linear'?"),
        ("unified", {"detach_weights": 0}, "detach_weights=0 is impossible; accepted: true or false"),
        ("ssp", {"positive": (0.5, -0.7)}, "positive=(0.5, -0.7) is impossible"),
        ("ssp", {"negative": 0.3}, "negative=0.3 is impossible"),
        ("rsp", {"coefficients": (0.0, "1", 0.0)}, "coefficients=(0.0, '1', 0.0) is impossible"),
        ("rsp", {"coefficients": (0.0, float("nan"), 0.0)}, "coefficients=(0.0, nan, 0.0) is impossible"),
        ("nt_xent", {"temperature": 0.0}, "temperature=0.0 is impossible"),
        ("smooth_ap", {"temperature": -0.01}, "temperature=-0.01 is impossible"),
        ("circle", {"gamma": 80.0}, "objective 'circle' has no argument 'gamma'; accepted: margin, normalize"),
        ("multi_similarity", {"epsilon": float("nan")}, "epsilon=nan is impossible"),
        ("siglip", {"bias": 101}, "bias=101 is impossible; accepted: a number from -100 to 100"),
        (
            "siglip",
            {"scale": 101.0, "learn_scale": True},
            "scale=101.0 is impossible; accepted: a number above 0 and at",
        ),
        ("goal", {"triplet": "circle"}, "triplet='circle' is unknown; did you mean 'cir'?"),
        ("goal", {"pair": "sig-ms"}, "pair='sig-ms' is unknown; did you mean 'sig_ms'?"),
        ("goal", {"tau": 0}, "tau=0 is impossible"),
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
        (PAIR, torch.eye(3)[:2], {}, "3 queries and 2 candidates: row i must match row i"),
        (PAIR, torch.ones(3, 4), {}, "same embedding size"),
        (PAIR[0], PAIR, {}, "queries: floating-point embeddings [B, D] are accepted, not float32 [3]"),
        (PAIR, PAIR.long(), {}, "candidates: floating-point embeddings [B, D] are accepted, not int64 [3, 3]"),
        (PAIR[:0], PAIR[:0], {}, "queries: at least one row is needed"),
        (PAIR, PAIR, {"query_ids": torch.arange(4)}, "query_ids: one integer per row, [3], is accepted"),
        (PAIR, PAIR, {"candidate_ids": torch.ones(3)}, "candidate_ids: one integer per row"),
        (
            PAIR,
            PAIR,
            {"query_ids": torch.tensor([1, 2, 3]), "candidate_ids": torch.tensor([1, 15, 3])},
            "query_ids[1] is 2 but candidate_ids[1] is 15",
        ),
        (PAIR, PAIR, {"margins": torch.ones(2)}, "margins: one number per pair, [3], is accepted"),
        (PAIR, PAIR, {"backend": "tilde"}, "backend='tilde' is unknown; did you mean 'tiled'?"),
        (PAIR, PAIR, {"backend": "tiled", "tile": 0}, "tile=0 is impossible"),
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


@pytest.mark.parametrize("scores", [torch.ones(3), torch.ones(0, 0), torch.ones(2, 2).long()])
@pytest.mark.parametrize("name", ["vlc", "circle"])
def test_refused_scores(name, scores):
    with pytest.raises(UserError, match="scores: a floating-point matrix"):
        from_scores(make(name), scores)


def test_scores_that_are_not_square_need_a_set_objective_and_ids():
    S, ids = torch.ones(2, 3), {"query_ids": torch.arange(2), "candidate_ids": torch.arange(3)}
    with pytest.raises(UserError, match="2 queries and 3 candidates: row i must match row i"):
        from_scores(make("vlc"), S, **ids)
    with pytest.raises(UserError, match="2 queries and 3 candidates"):
        from_scores(make("lifted"), S)
    assert from_scores(make("lifted"), S, **ids).isfinite()


def test_importing_the_objectives_needs_torch_alone():
    code = "import sys, allpairs.objectives; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert "torch" in loaded
    assert not {"transformers", "tokenizers", "ray", "faiss", "wandb", "deepspeed", "pydantic", "PIL"} & set(loaded)


def test_the_documentation_names_every_objective_and_argument():
    rows = [line for line in (ROOT / "docs" / "objectives.md").read_text().splitlines() if line.startswith("| `")]
    for name in names():
        (row,) = [line for line in rows if line.startswith(f"| `{name}` ")]
        for argument in arguments(name).keys() - {"reduction", "normalize"}:
            assert f"`{argument}" in row, (name, argument)


def test_only_goal_calls_its_value_a_surrogate():
    assert [name for name in names() if make(name).surrogate] == ["goal"]
