"""The table at the end of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from distributed.data.batch import describe_dropped
from distributed.data.texts import describe_shared
from distributed.launch import Result
from distributed.progress import duration
from retrieval_eval.metrics import RECALLS, metric_of, notes
from retrieval_eval.page.times import shares
from retrieval_eval.run_files import read_rows

SHOWN = (*(f"r{k}" for k in RECALLS), "average_recall", "median_rank", "mean_rank", "map5")
"""What fits beside each other in 80 columns; the report has every metric."""


def summary_table(result: Result) -> Table:
    """Return one row per direction of the final evaluation, RSUM below."""
    metrics = result.metrics
    split = "test" if "test/rsum" in metrics else "val"
    counted = _engine(metrics) == "exact"
    shown = [name for name in SHOWN if counted or not metric_of(name).every_rank]
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result.run_dir.name}: retrieval on {split}",
        title_justify="left",
        caption="\n".join([f"RSUM [bold]{metrics[f'{split}/rsum']:.1f}[/] of 600", *notes(shown)]),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in shown:
        table.add_column(metric_of(name).heading, justify="right")
    for way, name in (("i2t", "image → text"), ("t2i", "text → image")):
        table.add_row(
            name,
            *(metric_of(key).format % metrics[f"{split}/{way}/{key}"] for key in shown),
        )
    return table


def summary_lines(result: Result, seconds: float) -> str:
    """Return what took how long, and where everything lies."""
    metrics, folder = result.metrics, result.run_dir
    dropped, alike = describe_dropped(metrics), describe_shared(metrics, "train")
    engine = _engine(metrics)
    return (
        f"best epoch {metrics['val/best_epoch']:.4g} (val RSUM {metrics['val/best_rsum']:.1f}) · "
        f"training {duration(metrics['train/seconds'])}, this command {duration(seconds)}\n"
        + (f"recalls by   {engine}\n" if engine != "exact" else "")
        + _steps(folder)
        + (f"dropped      {dropped}\n" if dropped else "")
        + (f"same words   {alike} (data.equal_captions)\n" if alike else "")
        + f"report       {folder / 'report.html'}\n"
        f"checkpoints  {folder / 'checkpoints'}\n"
        f"metrics      {folder / 'metrics.jsonl'}"
    )


def _steps(folder: Path) -> str:
    """Return where the time of all steps went, how fast they were, and the most memory that a GPU needed."""
    rows = [row for row in read_rows(folder / "metrics.jsonl") if "train/samples_per_second" in row]
    parts = shares(rows)
    if not parts:
        return ""
    told = ", ".join(f"{part} {share:.0%}" for part, share in sorted(parts.items(), key=lambda part: -part[1])[:6])
    each = rows[-1].get("train/samples_per_second_per_worker")
    speed = f"{rows[-1]['train/samples_per_second']:,.0f} samples/s" + (f", {each:,.0f} a worker" if each else "")
    memory = max((row["train/gpu_gb"] for row in rows if "train/gpu_gb" in row), default=None)
    return f"steps        {told}; {speed}" + (f"; GPU memory {memory:.1f} GB" if memory else "") + "\n"


def _engine(metrics: Mapping[str, Any]) -> str:
    """Return what found the final ranks."""
    return str(metrics.get("test/engine" if "test/rsum" in metrics else "val/engine", "exact"))
