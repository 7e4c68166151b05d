"""The table at the end of a run."""

from rich import box
from rich.table import Table

from distributed.launch import Result
from distributed.progress import duration


def summary_table(result: Result) -> Table:
    """Return one row per split and direction, with RSUM per split; the last validation and the final test."""
    metrics = result.metrics
    table = Table(box=box.SIMPLE_HEAD, title=f"Retrieval of {result.run_dir.name}", title_justify="left")
    for heading in ("split", "direction", "R@1", "R@5", "R@10", "average", "median rank", "mean rank", "mAP@5", "RSUM"):
        table.add_column(heading, justify="left" if heading in ("split", "direction") else "right")
    for split in ("val", "test"):
        if f"{split}/rsum" not in metrics:
            continue
        for way, name in (("i2t", "image → text"), ("t2i", "text → image")):
            at = {key: metrics[f"{split}/{way}/{key}"] for key in _COLUMNS}
            rsum = f"[bold]{metrics[f'{split}/rsum']:.1f}[/]" if way == "t2i" else ""
            table.add_row(
                f"{split} (last epoch)" if split == "val" and way == "i2t" else split if way == "i2t" else "",
                name,
                *(f"{at[key]:.1f}" for key in ("r1", "r5", "r10", "average_recall")),
                f"{at['median_rank']:g}",
                f"{at['mean_rank']:.1f}",
                f"{at['map5']:.3f}",
                rsum,
            )
    return table


def summary_lines(result: Result, seconds: float) -> str:
    """Return what took how long, and where everything lies."""
    metrics, folder = result.metrics, result.run_dir
    return (
        f"best epoch {metrics['val/best_epoch']:.0f} (val RSUM {metrics['val/best_rsum']:.1f}) · "
        f"training {duration(metrics['train/seconds'])}, this command {duration(seconds)}\n"
        f"report       {folder / 'report.html'}\n"
        f"checkpoints  {folder / 'checkpoints'}\n"
        f"metrics      {folder / 'metrics.jsonl'}"
    )


_COLUMNS = ("r1", "r5", "r10", "average_recall", "median_rank", "mean_rank", "map5")
