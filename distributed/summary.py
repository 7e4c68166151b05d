"""The table at the end of a run."""

from rich import box
from rich.table import Table

from distributed.data.batch import describe_dropped
from distributed.launch import Result
from distributed.progress import duration
from retrieval_eval.metrics import RECALLS, metric_of, notes

SHOWN = (*(f"r{k}" for k in RECALLS), "average_recall", "median_rank", "mean_rank", "map5")
"""What fits beside each other in 80 columns; the report has every metric."""


def summary_table(result: Result) -> Table:
    """Return one row per direction of the final evaluation, RSUM below."""
    metrics = result.metrics
    split = "test" if "test/rsum" in metrics else "val"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result.run_dir.name}: retrieval on {split}",
        title_justify="left",
        caption="\n".join([f"RSUM [bold]{metrics[f'{split}/rsum']:.1f}[/] of 600", *notes(SHOWN)]),
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for name in SHOWN:
        table.add_column(metric_of(name).heading, justify="right")
    for way, name in (("i2t", "image → text"), ("t2i", "text → image")):
        table.add_row(
            name,
            *(metric_of(key).format % metrics[f"{split}/{way}/{key}"] for key in SHOWN),
        )
    return table


def summary_lines(result: Result, seconds: float) -> str:
    """Return what took how long, and where everything lies."""
    metrics, folder = result.metrics, result.run_dir
    dropped = describe_dropped(metrics)
    return (
        f"best epoch {metrics['val/best_epoch']:.4g} (val RSUM {metrics['val/best_rsum']:.1f}) · "
        f"training {duration(metrics['train/seconds'])}, this command {duration(seconds)}\n"
        + (f"dropped      {dropped}\n" if dropped else "")
        + f"report       {folder / 'report.html'}\n"
        f"checkpoints  {folder / 'checkpoints'}\n"
        f"metrics      {folder / 'metrics.jsonl'}"
    )
