"""``python -m retrieval_eval.compare``: is one run better than another, on the same queries?

    python -m retrieval_eval.compare runs/triplet runs/unified --split test --out comparison
    python -m retrieval_eval.compare 'runs/triplet-*' 'runs/unified-*'

Differences are the second's minus the first's. `retrieval_eval.comparison` says how the intervals and p-values come
about, `retrieval_eval.seeds` how where a side has several seeds.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter

from allpairs.command import run
from allpairs.embeddings import EmbeddingSet
from allpairs.errors import UserError
from allpairs.files import adding_to_folder, check_folder_to_write, write_json
from allpairs.terminal import visible
from retrieval_eval.comparison import Comparison, compare
from retrieval_eval.ensemble import check_same_queries
from retrieval_eval.manifest import facts_of
from retrieval_eval.measure import CountingOptions, default_device, measure
from retrieval_eval.metrics import label, notes, number
from retrieval_eval.norms import similarity_note
from retrieval_eval.page import write_comparison
from retrieval_eval.protocols import find_protocol
from retrieval_eval.run_files import embeddings_of
from retrieval_eval.seeds import compare_seeds, runs_of
from retrieval_eval.subset import read_subset

if TYPE_CHECKING:
    from rich.table import Table

FILES = ("comparison.json", "comparison.html")

app = App(name="retrieval_eval.compare", help="Paired comparison of two runs on the same queries.")


@app.default
def main(
    first: Annotated[
        str | Path, Parameter(help="Folder of the run to compare with; a quoted pattern for several seeds.")
    ],
    second: Annotated[str | Path, Parameter(help="Folder of the run that may be better or worse; or a pattern.")],
    *,
    split: Annotated[str, Parameter(help="Split to read from both runs.")] = "test",
    protocol: Annotated[str | None, Parameter(help="Evaluation protocol; default: the embeddings' own.")] = None,
    subset: Annotated[Path | None, Parameter(help="File with the queries to ask: see evaluate --subset.")] = None,
    cosine: Annotated[bool, Parameter(help="Rank by cosine similarity: see evaluate --cosine.", negative=())] = False,
    out: Annotated[Path | None, Parameter(help="Folder for comparison.json and comparison.html.")] = None,
    overwrite: Annotated[bool, Parameter(help="Replace a comparison that is there.", negative=())] = False,
) -> None:
    """Compare two runs: every metric, the difference with its 95 % interval, and p."""
    first, second = str(first), str(second)
    if out is not None:
        check_folder_to_write("--out", out, "comparisons", overwrite=overwrite, patterns=FILES)
    sides = [runs_of(first), runs_of(second)]
    runs = [folder for side in sides for folder in side]
    sets = [EmbeddingSet.read(embeddings_of(folder, split)) for folder in runs]
    check_same_queries(sets, list(map(str, runs)))
    made_for = {one.protocol: folder for one, folder in zip(sets, runs, strict=True)}
    if protocol is None and len(made_for) > 1:
        raise UserError(
            f"{' and '.join(map(str, made_for.values()))} were made for the protocols {' and '.join(made_for)}"
            "; accepted: one --protocol for all"
        )
    chosen = find_protocol(protocol or sets[0].protocol)
    asked = read_subset(subset, sets[0]) if subset is not None else None
    measured = [measure(one, chosen, asked, CountingOptions(default_device()), cosine=cosine) for one in sets]
    single = len(runs) == 2
    if single:
        found = compare(measured[0].folds, measured[1].folds, (first, second))
    else:
        folds = [one.folds for one in measured]
        found = compare_seeds(folds[: len(sides[0])], folds[len(sides[0]) :], (first, second))
    _show(found, f"{first} and {second} · {split} · {chosen.name}")
    for folder, one in zip(runs, measured, strict=True):
        if (note := similarity_note(one.manifest)) is not None:
            print(visible(f"{folder}: {note}"))
    if len({one.data_hash for one in sets}) > 1:
        print("note: the ids, keys and captions are the same, but the splits' data hashes differ")
    if out is None:
        return
    one_gallery = single and all(len(each.folds) == 1 for each in measured)
    with adding_to_folder(out) as fresh:
        write_json(fresh / "comparison.json", {"manifest": measured[0].manifest} | found.as_dict())
        write_comparison(
            fresh / "comparison.html",
            found,
            (measured[0].embeddings, measured[1].embeddings) if one_gallery else None,
            (measured[0].report, measured[len(sides[0])].report),
            facts=facts_of(measured[0].manifest),
            rows=measured[0].folds[0].rows,
        )
    print(f"comparison: {out / 'comparison.html'}, {out / 'comparison.json'}")


def table(comparison: Comparison, title: str | None = None) -> "Table":
    """Return a rich table: a metric per row; below it how many queries moved."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    shown = Table(
        title=Text(title) if title is not None else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        caption_justify="left",
    )
    shown.add_column("")
    for heading in ("first", "second", "difference", "95 % interval", "p"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for name, change in comparison.changes.items():
        shown.add_row(
            label(name),
            number(name, change.first),
            number(name, change.second),
            number(name, change.difference, signed=True),
            f"{number(name, change.low, signed=True)} to {number(name, change.high, signed=True)}",
            f"{change.p:.4f}",
        )
    seeds = "" if comparison.seeds == (1, 1) else "{} and {} seeds, means over them · ".format(*comparison.seeds)
    shown.caption = seeds + " · ".join(
        f"{direction}: {len(comparison.wins(direction)):,} queries better, {len(comparison.losses(direction)):,} worse"
        for direction in comparison.ranks
    )
    return shown


def _show(comparison: Comparison, title: str) -> None:
    from rich.console import Console

    Console().print(table(comparison, visible(title)))
    for note in notes(comparison.changes):
        print(note)


if __name__ == "__main__":
    run(app)
