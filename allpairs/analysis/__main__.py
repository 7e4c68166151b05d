"""``python -m allpairs.analysis``: analyse objectives, on embeddings or without any data.

python -m distributed.embed --run runs/emoji --split train --out embeddings/emoji
python -m allpairs.analysis counts --embeddings embeddings/emoji --out analysis
python -m allpairs.analysis table analysis/*/counts.json
python -m allpairs.analysis gradients --out analysis
python -m allpairs.analysis diagrams --out analysis
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from allpairs.analysis.cocos import Cocos, Setup, count_over_batches
from allpairs.analysis.variants import Variant, all_variants
from allpairs.command import run
from allpairs.embeddings import EmbeddingSet, Origin
from allpairs.errors import UserError
from allpairs.files import check_folder_to_write, existing, write_json, write_text

if TYPE_CHECKING:
    from cyclopts import App

_KIND = "allpairs counts"


def counts(
    *arguments: str,
    embeddings: list[Path],
    out: Path,
    objective: str | None = None,
    batch_size: int = 128,
    captions: int = 5,
    epsilon: float = 0.01,
    without_tau: bool = False,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Count contributing samples (COCOS) over the batches of a data set; writes counts.json and counts.png.

    Parameters
    ----------
    arguments
        `key=value` of the objective named by --objective, values as in JSON: margin=0.2 learn_scale=false.
    embeddings
        Folders of `python -m distributed.embed`, one or several.
    out
        Folder to write to.
    objective
        Count this objective, or `all`. Default: the one each model was trained with.
    batch_size
        Images per batch.
    captions
        At most so many captions per image in the batches of smooth_ap; the others see as many as in training.
    epsilon
        Weights up to this contribute nothing.
    without_tau
        Leave 1/τ out of SmoothAP's weights, as the released counter does.
    seed
        Decides the order of images and the captions drawn.
    overwrite
        Replace counts that are there.
    """
    from rich.console import Console

    from allpairs.analysis.count_figures import draw_counts
    from allpairs.analysis.count_tables import terminal_tables

    if not 0 <= epsilon < 1:
        raise UserError(f"--epsilon {epsilon} is impossible; accepted: a number from 0 up to, not including, 1")
    check_folder_to_write("--out", out, "counts", overwrite=overwrite, patterns=("counts.json", "counts.png"))
    setup = Setup(batch_size, captions, seed, epsilon, not without_tau)
    rows = []
    for path, loaded in _read_all(embeddings):
        for variant in _chosen(path, loaded.origin, objective, arguments):
            rows.append(count_over_batches(loaded, variant, setup))
    written = write_json(out / "counts.json", {"kind": _KIND, "rows": [row.to_json() for row in rows]}, indent=None)
    figure = draw_counts(out / "counts.png", rows)
    console = Console()
    for table in terminal_tables(rows):
        console.print(table)
    _say(written, figure)


def table(*files: Path, out: Path | None = None, overwrite: bool = False) -> None:
    """Join counts into one Markdown table: printed, or written to --out.

    Parameters
    ----------
    files
        counts.json files.
    out
        Markdown file to write.
    overwrite
        Replace a file that is there.
    """
    from allpairs.analysis.count_tables import markdown

    if out is not None and out.exists() and not overwrite:
        raise UserError(f"--out {out} exists already; give another, or --overwrite to replace it")
    if not files:
        raise UserError("nothing to join; accepted: one or more counts.json files")
    text = markdown([row for path in files for row in _read_counts(path)])
    if out is None:
        print(text, end="")
    else:
        _say(write_text(out, text))


def gradients(
    *,
    out: Path,
    embeddings: list[Path] | None = None,
    batch_size: int = 128,
    dim: int = 256,
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Measure tangential gradient norms as similarities spread; writes gradients.json and figures.

    Parameters
    ----------
    out
        Folder to write to.
    embeddings
        Also measure real embeddings: folders of `python -m distributed.embed`, for example of several checkpoints.
    batch_size
        Pairs per batch.
    dim
        Embedding size of the synthetic batches.
    seed
        Decides the synthetic batches, the order of images and the captions drawn.
    overwrite
        Replace measurements that are there.
    """
    from rich.console import Console

    from allpairs.analysis.gradient_figures import draw_spreading
    from allpairs.analysis.gradient_tables import embeddings_table, synthetic_table
    from allpairs.analysis.spreading import compared, on_embeddings, on_synthetic
    from allpairs.analysis.synthetic import DESCRIPTIONS

    for flag, value in (("--batch-size", batch_size), ("--dim", dim)):
        if value < 3:
            raise UserError(f"{flag} {value} is impossible; accepted: a whole number from 3")
    check_folder_to_write(
        "--out", out, "measurements", overwrite=overwrite, patterns=("gradients.json", "gradients_*.png")
    )
    loaded = _read_all(embeddings or [])
    console = Console()
    result: dict[str, Any] = {"batch_size": batch_size, "dim": dim, "seed": seed, "synthetic": {}, "embeddings": []}
    figures = []
    for scenario, description in DESCRIPTIONS.items():
        points = on_synthetic(scenario, size=batch_size, dim=dim, seed=seed)
        result["synthetic"][scenario] = [point.to_json() for point in points]
        horizontal = "negatives" if scenario == "collapsed" else "positives"
        title = f"{scenario}: {description}"
        figures.append(draw_spreading(out / f"gradients_{scenario}.png", points, title, horizontal))
        console.print(synthetic_table(points, title))
    if loaded:
        variants = compared([one.origin for _, one in loaded])
        points = [on_embeddings(one, variants, size=batch_size, seed=seed) for _, one in loaded]
        result["embeddings"] = [point.to_json() for point in points]
        title = "Real embeddings: " + ", ".join(dict.fromkeys(point.source for point in points))
        figures.append(draw_spreading(out / "gradients_embeddings.png", points, title, "negatives"))
        for point in points:
            console.print(embeddings_table(point))
    _say(write_json(out / "gradients.json", result, indent=None), *figures)


def diagrams(*, out: Path, points: int = 60, overwrite: bool = False) -> None:
    """Draw triplet diagrams: weights over the plane of both similarities; writes diagrams.json and figures.

    Parameters
    ----------
    out
        Folder to write to.
    points
        Grid points per axis.  60 puts none exactly on the margin of 0.2, where rounding would decide.
    overwrite
        Replace diagrams that are there.
    """
    from rich.console import Console

    from allpairs.analysis.diagram_figures import draw_diagrams, draw_pair_weights, draw_triplet_weights
    from allpairs.analysis.diagram_tables import landmark_table
    from allpairs.analysis.diagrams import all_diagrams, axis
    from allpairs.objectives.goal import RELATION

    if not 11 <= points <= 1001:
        raise UserError(f"--points {points} is impossible; accepted: 11 to 1001")
    files = ("diagrams.json", "triplet_weights.png", "pair_weights.png", "goal.png", "objectives.png")
    check_folder_to_write("--out", out, "diagrams", overwrite=overwrite, patterns=files)
    drawn = all_diagrams(points)
    goal = [one for one in drawn if one.label.startswith("goal")]
    others = [one for one in drawn if not one.label.startswith("goal")]
    result = {
        "axis": axis(points).tolist(),
        "relation": RELATION,
        "weights": {
            one.label: {"pull": _rounded(one.pull.tolist()), "push": _rounded(one.push.tolist())} for one in drawn
        },
    }
    figures = (
        draw_triplet_weights(out / "triplet_weights.png", points),
        draw_pair_weights(out / "pair_weights.png"),
        draw_diagrams(out / "goal.png", goal),
        draw_diagrams(out / "objectives.png", others),
    )
    Console().print(landmark_table())
    _say(write_json(out / "diagrams.json", result, indent=None), *figures)


def make_app() -> "App":
    """Return the command line."""
    from cyclopts import App, Parameter

    app = App(
        name="python -m allpairs.analysis",
        help=__doc__,
        help_format="plaintext",
        version_flags=[],
        default_parameter=Parameter(consume_multiple=True, negative=()),
    )
    for command in (counts, table, gradients, diagrams):
        app.command(command)
    return app


def _read_all(paths: Sequence[Path]) -> list[tuple[Path, EmbeddingSet]]:
    return [(path, _read(path)) for path in paths]


def _read(path: Path) -> EmbeddingSet:
    loaded = EmbeddingSet.read(existing(path))
    try:
        loaded.check_matches()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    if not loaded.origin.run:  # what says nothing of its run is called by its own name
        loaded.origin = replace(loaded.origin, run=path.name)
    return loaded


def _chosen(path: Path, origin: Origin, name: str | None, given: Sequence[str]) -> list[Variant]:
    if name == "all" or name is None:
        if given:
            raise UserError(f"{given[0]}: arguments need --objective NAME that they belong to")
        if name == "all":
            return all_variants()
        if not origin.objective:
            raise UserError(f"{path}: says no objective it was trained with; accepted: --objective NAME, or all")
        return [Variant(origin.objective, origin.arguments)]
    parsed = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals:
            raise UserError(f"{text!r} is no argument of an objective; accepted: key=value")
        parsed[key] = _value(value)
    return [Variant(name, parsed)]


def _value(text: str) -> Any:
    """Return a number, truth value, null or list as JSON writes it; anything else is a word, as `triplet=nca`."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read_counts(path: Path) -> list[Cocos]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["kind"] != _KIND:
            raise ValueError(f"kind is {values['kind']!r}")
        return [Cocos.from_json(row) for row in values["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the counts.json of `counts` ({error})") from None


def _rounded(rows: list[list[float]]) -> list[list[float]]:
    return [[float(f"{value:.6g}") for value in row] for row in rows]


def _say(*paths: Path) -> None:
    for path in paths:
        print(f"written: {path}")


if __name__ == "__main__":
    try:
        run(make_app())
    except ModuleNotFoundError as missing:
        print(
            f"error: {missing.name} is not installed; the commands need: pip install 'allpairs[analysis]'",
            file=sys.stderr,
        )
        sys.exit(2)
