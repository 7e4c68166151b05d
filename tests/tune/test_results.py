"""Tables, CSV and figures of a search, from metrics written by hand."""

import csv
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from pydantic import ValidationError
from rich.console import Console

from distributed.run_directory import RunDirectory
from tune.config import Search
from tune.panels import draw_parameters
from tune.plots import draw, draw_curves, draw_plane, plane
from tune.results import Trial, evaluations, ranked, write_csv
from tune.settings import settings_of, table, write_settings
from tune.trial import TrialPlan


def search(space: dict, **more: object) -> Search:
    return Search.model_validate({"name": "s", "base": "b.yaml", "space": space, **more})


def trial(number: int, values: dict, rsums: list[float], status: str = "finished", reason: str = "") -> Trial:
    history = [
        {
            "epoch": epoch,
            "val/rsum": rsum,
            "val/loss": 1 / epoch,
            "val/positive_similarity": 0.1 * epoch,
            "val/hardest_negative_similarity": 0.05 * epoch,
        }
        for epoch, rsum in enumerate(rsums, start=1)
    ]
    return Trial(f"7f_{number:05}", values, status, Path(f"runs/s-7f_{number:05}"), history, reason)  # type: ignore[arg-type]


MARGIN_SCALE = search({"objective.margin": {"grid": [0.1, 0.2]}, "objective.scale": {"grid": [10, 20]}})
GRID = [
    trial(0, {"objective.margin": 0.1, "objective.scale": 10}, [10.0, 100.0, 90.0]),
    trial(1, {"objective.margin": 0.2, "objective.scale": 10}, [50.0, 300.0]),
    trial(2, {"objective.margin": 0.1, "objective.scale": 20}, [200.0]),
    trial(3, {"objective.margin": 0.2, "objective.scale": 20}, [], "failed", "the loss is nan at step 7"),
]


def test_best_is_over_all_epochs_and_the_failed_come_last() -> None:
    assert GRID[0].best("val/rsum", "max") == (100.0, 2)
    assert GRID[0].best("val/rsum", "min") == (10.0, 1)
    assert [trial.id[-1] for trial in ranked(GRID, MARGIN_SCALE)] == ["1", "2", "0", "3"]
    smallest = search({"train.seed": {"grid": [0]}}, metric="val/loss", mode="min")
    assert [trial.id[-1] for trial in ranked(GRID, smallest)] == ["0", "1", "2", "3"]


def test_csv_holds_values_best_and_last(tmp_path: Path) -> None:
    write_csv(tmp_path / "results.csv", GRID, MARGIN_SCALE)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert rows[2] == {
        "trial": "7f_00000",
        "status": "finished",
        "objective.margin": "0.1",
        "objective.scale": "10",
        "best val/rsum": "100.0",
        "best epoch": "2",
        "last val/rsum": "90.0",
        "epochs": "3",
        "reason": "",
        "run": "runs/s-7f_00000",
    }
    assert (rows[3]["best val/rsum"], rows[3]["reason"]) == ("", "the loss is nan at step 7")


def test_csv_columns_belong_to_their_keys_whatever_the_order_of_a_trial(tmp_path: Path) -> None:
    swapped = trial(0, {"objective.scale": 10, "objective.margin": 0.1}, [1.0])
    write_csv(tmp_path / "results.csv", [swapped], MARGIN_SCALE)
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["objective.margin"], row["objective.scale"]) == ("0.1", "10")


def test_table_lists_the_best_first_and_says_why_one_failed() -> None:
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table(settings_of(GRID, MARGIN_SCALE), MARGIN_SCALE))
    lines = capture.get().splitlines()
    assert lines[0].split() == ["trial", "margin", "scale", "val/rsum", "epoch"]
    assert lines[1].split()[:5] == ["7f_00001", "0.2", "10", "300.0", "2"]
    assert "failed: the loss is nan at step 7" in lines[4]


def test_table_of_many_keys_names_each_setting_in_one_column() -> None:
    keys = {f"objective.key{number}": number / 7 for number in range(5)}
    many = search(space={key: {"uniform": [0, 1]} for key in keys}, trials=2, algorithm="random")
    console = Console(width=80)
    with console.capture() as capture:
        console.print(table(settings_of([trial(0, dict(list(keys.items())[1:]), [50.0])], many), many))
    text = " ".join(capture.get().split())
    assert text.startswith("trial setting val/rsum epoch 7f_00000 key1=0.143 key2=0.286 key3=0.429 key4=0.571 50.0")


def test_evaluations_are_read_from_the_run_without_its_final_one(tmp_path: Path) -> None:
    rows = [
        {"step": 9, "epoch": 1.0, "train/loss": 1.0},
        {"step": 9, "epoch": 1.0, "val/rsum": 20.0, "val/best_rsum": 20.0},
        {"step": 9, "epoch": 1.0, "val/rsum": 20.0},
    ]
    written = [row | {"val/engine": "exact"} for row in rows]  # a word, of which no seeds have a mean
    RunDirectory(tmp_path).metrics.write_text("".join(json.dumps(row) + "\n" for row in written) + '{"half')
    assert evaluations(RunDirectory(tmp_path)) == rows[1:2]


def test_two_numeric_lists_make_a_plane_and_nothing_else_does() -> None:
    assert plane(settings_of(GRID, MARGIN_SCALE), MARGIN_SCALE) == ("objective.margin", "objective.scale")
    margins = search({"objective.margin": {"grid": [0.1]}})
    assert plane(settings_of(GRID[:1], margins), margins) is None
    drawn = {"objective.margin": {"uniform": [0, 1]}, "objective.scale": {"choice": [10]}}
    random = search(drawn, algorithm="random", trials=2)
    assert plane(settings_of(GRID, random), random) is None
    names = search({"objective": {"grid": [{"name": "vlc"}]}, "train.seed": {"grid": [0]}})
    named = [trial(0, {"objective": {"name": "vlc"}, "train.seed": 0}, [1.0])]
    assert plane(settings_of(named, names), names) is None


def test_heat_map_shows_each_cell_at_its_place_and_leaves_the_missing_one_empty() -> None:
    figure = Figure()
    draw_plane(figure, settings_of(GRID[:3], MARGIN_SCALE), MARGIN_SCALE, "objective.margin", "objective.scale")
    axes = figure.axes[0]
    (image,) = axes.get_images()
    np.testing.assert_array_equal(
        np.ma.filled(image.get_array(), np.nan), [[100.0, 200.0], [300.0, np.nan]]
    )  # rows: margin 0.1, 0.2 from below; columns: scale 10, 20
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("scale", "margin")
    assert sorted(text.get_text() for text in axes.texts) == ["100", "200", "300"]
    assert [text.get_text() for text in axes.texts if text.get_weight() == "bold"] == ["300"]
    assert "RSUM" in figure.axes[1].get_ylabel()


def test_repeated_point_shows_its_best() -> None:
    twice = [*GRID[:3], trial(4, GRID[0].values, [250.0]), trial(5, GRID[0].values, [5.0])]
    figure = Figure()
    draw_plane(figure, settings_of(twice, MARGIN_SCALE), MARGIN_SCALE, "objective.margin", "objective.scale")
    assert figure.axes[0].get_images()[0].get_array()[0, 0] == 250.0


def test_scatter_has_a_panel_for_each_key_and_marks_the_best() -> None:
    space = {
        "objective": {"choice": [{"name": "vlc"}, {"name": "unified"}]},
        "optimizer.lr": {"loguniform": [1e-4, 1e-2]},
    }
    trials = [
        trial(0, {"objective": {"name": "vlc"}, "optimizer.lr": 1e-3}, [100.0]),
        trial(1, {"objective": {"name": "unified"}, "optimizer.lr": 5e-3}, [200.0]),
    ]
    figure = Figure()
    random = search(space, algorithm="random", trials=2)
    draw_parameters(figure, settings_of(trials, random), random)
    left, right = figure.axes
    assert [label.get_text() for label in left.get_xticklabels()] == ["unified", "vlc"]
    assert (left.get_xlabel(), right.get_xlabel(), right.get_xscale()) == ("objective", "lr", "log")
    low, high = right.get_xlim()  # the range that was searched, not what was drawn
    assert low < 1e-4
    assert high > 1e-2
    points, star = right.collections
    np.testing.assert_array_equal(points.get_offsets(), [[5e-3, 200.0], [1e-3, 100.0]])
    np.testing.assert_array_equal(star.get_offsets(), [[5e-3, 200.0]])


def test_curves_show_loss_rsum_and_both_similarities_of_each_trial() -> None:
    space = search({"objective": {"grid": [{"name": "vlc", "scale": 20}, {"name": "triplet_hn"}]}}, plot="curves")
    trials = [
        trial(0, {"objective": {"name": "vlc", "scale": 20}}, [10.0, 20.0, 30.0]),
        trial(1, {"objective": {"name": "triplet_hn"}}, [5.0, 6.0]),
    ]
    figure = Figure()
    draw_curves(figure, settings_of(trials, space), space)
    loss, rsum, similarity = figure.axes
    np.testing.assert_allclose(loss.get_lines()[0].get_xydata(), [[1, 1], [2, 1 / 2], [3, 1 / 3]])
    np.testing.assert_allclose(rsum.get_lines()[1].get_xydata(), [[1, 5], [2, 6]])
    positive, hardest = similarity.get_lines()[:2]
    np.testing.assert_allclose(positive.get_ydata(), [0.1, 0.2, 0.3])
    np.testing.assert_allclose(hardest.get_ydata(), [0.05, 0.1, 0.15])
    assert (positive.get_linestyle(), hardest.get_linestyle()) == ("-", "--")
    assert positive.get_color() == hardest.get_color() == loss.get_lines()[0].get_color()
    assert [text.get_text() for text in rsum.get_legend().get_texts()] == ["vlc(scale=20)", "triplet_hn"]
    assert [text.get_text() for text in similarity.get_legend().get_texts()] == ["positive", "hardest negative"]
    assert all(axes.get_xlabel() == "epoch" and axes.get_ylabel() for axes in figure.axes)


@pytest.mark.parametrize("plot", ["landscape", "curves"])
def test_figure_is_written_as_png_and_svg_and_twice_the_same(tmp_path: Path, plot: str) -> None:
    chosen = MARGIN_SCALE.model_copy(update={"plot": plot})
    for name in ("first", "second"):
        draw(tmp_path / f"{name}.png", settings_of(GRID[:3], chosen), TrialPlan(chosen, {}, tmp_path))
    with Image.open(tmp_path / "first.png") as picture:
        assert min(picture.size) > 300
    assert ElementTree.parse(tmp_path / "first.svg").getroot().tag.endswith("svg")
    assert (tmp_path / "first.svg").read_bytes() == (tmp_path / "second.svg").read_bytes()


SEEDS = search({"objective.margin": {"grid": [0.1, 0.2]}}, seeds=3)
REPEATED = [
    trial(number, {"objective.margin": margin, "train.seed": seed}, rsums)
    for number, (margin, seed, rsums) in enumerate(
        [(0.1, 0, [1.0, 9.0]), (0.2, 0, [4.0, 5.0]), (0.1, 1, [2.0, 1.0]), (0.2, 1, [7.0, 3.0]), (0.2, 2, [6.0, 1.0])]
    )
]
FAILED = trial(5, {"objective.margin": 0.1, "train.seed": 2}, [], "failed", "no room")


def with_tests(trial: Trial, r1: float) -> Trial:
    names = [f"{way}/r{k}" for way in ("i2t", "t2i") for k in (1, 5, 10)]
    summary = {f"test/{name}": r1 + place for place, name in enumerate(names)} | {"test/rsum": 6 * r1 + 15}
    return replace(trial, summary=summary)


def test_seeds_become_mean_and_standard_deviation_of_a_setting(tmp_path: Path) -> None:
    small, large = settings_of([*REPEATED, FAILED], SEEDS)
    # 9 and 2: mean 5.5, deviation 7/sqrt(2); 5, 7 and 6: mean 6, deviation 1.
    assert small.best("val/rsum", "max") == (5.5, 1.5)
    assert (spread := small.spread("val/rsum", "max")) is not None
    assert (spread.mean, spread.seeds) == (5.5, 2)
    assert spread.deviation == pytest.approx(7 / 2**0.5)
    assert (spread := large.spread("val/rsum", "max")) is not None
    assert (spread.mean, spread.deviation, spread.seeds) == (6.0, 1.0, 3)
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table([small, large], SEEDS))
    lines = capture.get().splitlines()
    assert lines[0].split() == ["seeds", "margin", "val/rsum", "epoch"]
    assert lines[1].split() == ["3", "of", "3", "0.2", "6.000", "±", "1.000", "1.33", "finished"]
    assert lines[2].split()[:7] == ["2", "of", "3", "0.1", "5.500", "±", "4.950"]
    assert "2 finished, 1 failed: no room" in lines[2]
    write_csv(tmp_path / "results.csv", REPEATED, SEEDS)
    assert "objective.margin,train.seed" in (tmp_path / "results.csv").read_text()
    write_settings(tmp_path, [small, large], SEEDS)
    with (tmp_path / "settings.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["objective.margin"], first["seeds"]) == ("0.2", "3")
    assert (first["best val/rsum mean"], first["best val/rsum std"]) == ("6.0", "1.0")
    assert first["val/rsum mean"] == "6.0"
    assert first["val/i2t/r1 mean"] == "", "never measured by these hand-written runs"
    assert second["seeds"] == "2"


def test_settings_compare_on_the_test_split_where_all_have_it(tmp_path: Path) -> None:
    tested = [with_tests(one, 10.0 * number) for number, one in enumerate(REPEATED)]
    write_settings(tmp_path, settings_of(tested, SEEDS), SEEDS)
    with (tmp_path / "settings.csv").open(newline="") as file:
        first, second = csv.DictReader(file)
    # margin 0.2 has the trials 1, 3 and 4: R@1 10, 30 and 40.
    assert float(first["test/i2t/r1 mean"]) == pytest.approx(80 / 3)
    assert float(first["test/i2t/r1 std"]) == pytest.approx((700 / 3) ** 0.5)
    assert float(second["test/rsum mean"]) == pytest.approx((15 + 135) / 2)
    text = (tmp_path / "settings.tex").read_text()
    assert r"margin & i2t R@1 & i2t R@5 & i2t R@10 & t2i R@1 & t2i R@5 & t2i R@10 & RSUM \\" in text
    assert r"0.2 & $26.7 {\pm} 15.3$ & $27.7 {\pm} 15.3$" in text
    write_settings(tmp_path, settings_of([*tested[1:], REPEATED[0]], SEEDS), SEEDS)
    assert "test/" not in (tmp_path / "settings.csv").read_text(), "one run without a test: no comparison on it"


def test_curves_and_landscapes_of_seeds_are_means_with_bars() -> None:
    settings = settings_of(REPEATED, SEEDS)
    figure = Figure()
    draw_curves(figure, settings, SEEDS)
    np.testing.assert_allclose(figure.axes[1].get_lines()[1].get_ydata(), [17 / 3, 3.0])
    figure = Figure()
    draw_parameters(figure, settings, SEEDS)
    bars = figure.axes[0].containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose(bars[0], [[0.2, 5.0], [0.2, 7.0]])
    grid = search({"objective.margin": {"grid": [0.1]}, "objective.scale": {"grid": [5]}}, seeds=2)
    trials = [trial(n, {"objective.margin": 0.1, "objective.scale": 5, "train.seed": n}, [float(n)]) for n in (1, 3)]
    figure = Figure()
    draw_plane(figure, settings_of(trials, grid), grid, "objective.margin", "objective.scale")
    assert [text.get_text() for text in figure.axes[0].texts] == ["2\n±1.4"]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"space": {"train.seed": {"grid": [0, 1]}}}, "train.seed is searched already"),
        ({"algorithm": "optuna", "trials": 4, "space": {"objective.margin": {"uniform": [0, 1]}}}, "optuna learns"),
        ({"scheduler": "asha"}, "asha would stop some seeds"),
    ],
)
def test_seeds_need_whole_settings(more: dict, message: str) -> None:
    declared = {"name": "s", "base": "b.yaml", "space": {"objective.margin": {"grid": [0.1]}}, "seeds": 2}
    with pytest.raises(ValidationError, match=message):
        Search.model_validate(declared | more)
