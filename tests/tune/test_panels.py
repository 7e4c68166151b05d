"""Figures and tables of searches with references, conditions and one key at a time, from metrics written by hand."""

import csv
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from tests.tune.test_results import search, trial
from tune.config import Search
from tune.panels import draw_lines, draw_parameters
from tune.plots import draw, draw_plane, plane
from tune.results import Trial, write_csv
from tune.settings import settings_of, table, write_settings
from tune.trial import TrialPlan

VLC = {"objective": {"name": "vlc", "scale": 20}}
HOME = {"objective.margin": 0.2, "objective.scale": 20}


def reference(number: int, values: dict, rsums: list[float]) -> Trial:
    return replace(trial(number, values, rsums), reference=True)


@pytest.fixture
def figure_5() -> tuple[Search, list[Trial]]:
    """Margin and scale one at a time, two seeds, beside VLC."""
    declared = search(
        {"objective.margin": {"grid": [0, 0.2]}, "objective.scale": {"grid": [20, 60]}},
        algorithm="one_at_a_time",
        references=[VLC],
        seeds=2,
    )
    trials = []
    for seed in (0, 1):
        for margin, scale, rsum in [(0, 20, 100), (0.2, 20, 300), (0.2, 60, 200)]:
            values = {"objective.margin": margin, "objective.scale": scale, "train.seed": seed}
            trials.append(trial(len(trials), values, [rsum + 10.0 * seed]))
        trials.append(reference(len(trials), {**VLC, "train.seed": seed}, [150.0 + 20 * seed]))
    return declared, trials


def horizontal(axes: Any) -> dict[str, float]:
    """The horizontal lines by their labels."""
    lines = [line for line in axes.get_lines() if len(set(line.get_ydata())) == 1 and line.get_label()[0] != "_"]
    return {line.get_label(): line.get_ydata()[0] for line in lines}


def test_one_key_at_a_time_is_a_line_a_panel_with_references_across(figure_5: tuple[Search, list[Trial]]) -> None:
    declared, trials = figure_5
    figure = Figure()
    draw_lines(figure, settings_of(trials, declared), declared, HOME)
    margin, scale = figure.axes
    np.testing.assert_allclose(margin.containers[0].lines[0].get_xydata(), [[0, 105], [0.2, 305]])
    np.testing.assert_allclose(scale.containers[0].lines[0].get_xydata(), [[20, 305], [60, 205]])
    assert (margin.get_xlabel(), margin.get_title()) == ("margin", "scale = 20")
    assert (scale.get_xlabel(), scale.get_title()) == ("scale", "margin = 0.2")
    assert horizontal(margin) == horizontal(scale) == {"vlc(scale=20)": 160.0}
    low, high = np.sort(margin.patches[0].get_extents().transformed(margin.transData.inverted()).intervaly)
    assert (low, high) == pytest.approx((160 - 200**0.5, 160 + 200**0.5))  # 150 and 170
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["vlc(scale=20)"]


def test_references_stand_in_table_csv_and_latex(figure_5: tuple[Search, list[Trial]], tmp_path: Path) -> None:
    declared, trials = figure_5
    settings = settings_of(trials, declared)
    assert [(len(one.trials), one.reference) for one in settings] == [(2, False)] * 3 + [(2, True)]
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table(settings, declared))
    lines = [line.split() for line in capture.get().splitlines()]
    assert lines[0] == ["seeds", "margin", "scale", "reference", "val/rsum", "epoch"]
    assert lines[1][3:8] == ["0.2", "20", "–", "305.0", "±"]
    assert lines[3][3:8] == ["–", "–", "vlc(scale=20)", "160.0", "±"]
    write_csv(tmp_path / "results.csv", trials, declared)
    write_settings(tmp_path, settings, declared)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    keys = ("objective.margin", "objective.scale", "train.seed", "reference", "best val/rsum")
    assert [rows[0][key] for key in keys] == ["0.2", "20", "1", "", "310.0"]
    assert ["", "", "1", "vlc(scale=20)", "170.0"] in [[row[key] for key in keys] for row in rows]
    with (tmp_path / "settings.csv").open(newline="") as file:
        means = {row["reference"]: row["best val/rsum mean"] for row in csv.DictReader(file)}
    assert means["vlc(scale=20)"] == "160.0"
    assert r"\multicolumn{2}{l}{vlc(scale=20)} & " in (tmp_path / "settings.tex").read_text()


def test_a_reference_that_is_also_a_point_is_a_setting_of_its_own() -> None:
    declared = search({"objective": {"grid": [VLC["objective"]]}}, references=[VLC])
    assert len(settings_of([trial(0, VLC, [1.0]), reference(1, VLC, [2.0])], declared)) == 2


def test_the_whole_figure_is_drawn_with_its_references(figure_5: tuple[Search, list[Trial]], tmp_path: Path) -> None:
    declared, trials = figure_5
    draw(
        tmp_path / "search.png",
        settings_of(trials, declared),
        TrialPlan(declared, {"objective": {"margin": 0.2, "scale": 20}}, tmp_path),
    )
    assert "<!-- vlc(scale=20) -->" in (tmp_path / "search.svg").read_text()  # above its outlines
    assert (tmp_path / "search.png").stat().st_size > 10_000


def test_two_lists_of_words_are_a_heat_map_in_their_order_with_references_on_the_bar() -> None:
    declared = search(
        {"objective.pair": {"grid": ["con", "sig"]}, "objective.triplet": {"grid": ["nca", "cir"]}}, references=[VLC]
    )
    cells = [("con", "nca", 1.0), ("con", "cir", 2.0), ("sig", "nca", 3.0), ("sig", "cir", 4.0)]
    trials = [
        trial(number, {"objective.pair": pair, "objective.triplet": triplet}, [rsum])
        for number, (pair, triplet, rsum) in enumerate(cells)
    ]
    settings = settings_of([*trials, reference(9, VLC, [9.0])], declared)
    assert plane(settings, declared) == ("objective.pair", "objective.triplet")
    figure = Figure()
    draw_plane(figure, settings, declared, "objective.pair", "objective.triplet")
    axes, bar = figure.axes
    np.testing.assert_array_equal(axes.get_images()[0].get_array(), [[1, 2], [3, 4]])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["nca", "cir"]
    assert horizontal(bar) == {"vlc(scale=20)": 9.0}
    assert bar.get_ylim()[1] >= 9
    assert len(figure.legends) == 1


def test_a_panel_shows_the_trials_that_have_its_key_and_each_element_of_a_list() -> None:
    declared = search(
        {
            "objective.weighting": {"choice": ["none", "rsp"]},
            "objective.coefficients": {
                "each": [0, {"uniform": [0, 1]}, {"uniform": [0, 1]}],
                "when": {"objective.weighting": "rsp"},
            },
        },
        algorithm="random",
        trials=3,
    )
    trials = [
        trial(0, {"objective.weighting": "none"}, [30.0]),
        trial(1, {"objective.weighting": "rsp", "objective.coefficients": [0, 0.5, 0.1]}, [20.0]),
        trial(2, {"objective.weighting": "rsp", "objective.coefficients": [0, 0.7, 0.2]}, [10.0]),
    ]
    settings = settings_of(trials, declared)
    figure = Figure()
    draw_parameters(figure, settings, declared)
    assert [axes.get_xlabel() for axes in figure.axes] == ["weighting", "coefficients[1]", "coefficients[2]"]
    points = [axes.collections[0].get_offsets().tolist() for axes in figure.axes]
    assert points == [[[0, 30], [1, 20], [1, 10]], [[0.5, 20], [0.7, 10]], [[0.1, 20], [0.2, 10]]]
    assert [len(axes.collections) for axes in figure.axes] == [2, 1, 1], "the best has no coefficients"
    console = Console(width=140)
    with console.capture() as capture:
        console.print(table(settings, declared))
    assert capture.get().splitlines()[1].split()[1:4] == ["none", "–", "30.0"]
