"""``python -m distributed.data build|validate|describe``."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from allpairs.command import run
from allpairs.errors import UserError
from allpairs.files import write_json
from allpairs.terminal import visible
from distributed.data.build_commands import app as build_app
from distributed.data.describe import describe_folder
from distributed.data.manifest import split_folders
from distributed.data.validate import SHARD_PROBLEMS, ValidationReport, validate_folders

app = App(name="python -m distributed.data", help="Build, check and describe image–text data sets.", version_flags=[])
app.command(build_app)
AtLeastOne = Annotated[int, Parameter(validator=Number(gte=1))]


@app.command
def validate(
    folder: Path, *, world: AtLeastOne = 1, max_image_pixels: AtLeastOne = 50_000_000, json: Path | None = None
) -> int:
    """Check every sample of a data set or of any folder of shards; exit code 1 when something is wrong.

    Parameters
    ----------
    folder
        One split, a folder with splits, or a folder of tar files.
    world
        Number of training ranks planned, to see how evenly they would be fed.
    max_image_pixels
        Larger images count as oversized; they are not decoded.
    json
        Write the report to this file as well.
    """
    reports = validate_folders(split_folders(folder), world=world, max_image_pixels=max_image_pixels)
    for report in reports:
        _print_report(report)
    _write_json(json, [report.as_dict() for report in reports])
    return 0 if all(report.ok for report in reports) else 1


@app.command
def describe(folder: Path, *, json: Path | None = None) -> None:
    """Show what a data set holds.

    Parameters
    ----------
    folder
        One split or a folder with splits.
    json
        Write the description to this file as well.
    """
    descriptions = [describe_folder(part) for part in split_folders(folder)]
    for description in descriptions:
        _print_description(description)
    _write_json(json, descriptions)


def _print_report(report: ValidationReport) -> None:
    console = Console()
    causes = [cause for cause in SHARD_PROBLEMS if any(shard.problems[cause] for shard in report.shards)]
    table = Table("shard", "samples", *causes, "faults", title=Text(visible(report.folder)), title_justify="left")
    for shard in report.shards:
        counts = (str(shard.problems[cause] or "") for cause in causes)
        faults = Text(visible("; ".join(shard.faults)))
        table.add_row(Text(visible(Path(shard.file).name)), f"{shard.samples:,}", *counts, faults)
    console.print(table)
    for shard in report.shards:
        for cause, example in shard.examples.items():
            said = visible(f"{cause}: first in {Path(shard.file).name}: {example}")
            console.print(f"  {said}", markup=False, highlight=False)
    for note in report.notes:
        console.print(f"note: {visible(note)}", markup=False, highlight=False, soft_wrap=True)
    for fault in report.faults:
        console.print(f"fault: {visible(fault)}", markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"{'ok' if report.ok else 'problems found'}: {report.samples:,} samples in {len(report.shards)} shards"
    )


def _print_description(description: dict[str, Any]) -> None:
    title = f"{description['name']} / {description['split']} ({description['folder']})"
    table = Table(title=Text(visible(title)), title_justify="left", show_header=False)
    table.add_row("samples", f"{description['samples']:,}")
    table.add_row("captions", f"{description['captions']:,} ({description['captions_per_sample']:.2f} per sample)")
    shared = description["shared_captions"]
    table.add_row("equal captions", f"{shared['texts']:,} texts, each of several images: {shared['images']:,} in all")
    table.add_row("shards", f"{description['shards']:,} ({description['bytes'] / 1e6:,.1f} MB)")
    lengths = ", ".join(f"{name} {value:g}" for name, value in description["words_per_caption"].items())
    table.add_row("words per caption", lengths)
    words = escape(visible(", ".join(description["commonest_words"])))
    table.add_row("vocabulary", f"{description['vocabulary']:,} words: {words}, …")
    table.add_row("sizes", ", ".join(f"{size} ({count:,})" for size, count in description["sizes"].items()))
    for example in description["examples"]:
        table.add_row(Text(visible(example["key"])), Text("\n".join(map(visible, example["captions"]))))
    Console().print(table)


def _write_json(file: Path | None, content: list[dict[str, Any]]) -> None:
    if file is None:
        return
    try:
        write_json(file, content, indent=1)
    except OSError as error:
        raise UserError(f"--json {file}: {error.strerror}") from error


if __name__ == "__main__":
    run(app)
