"""The table at the end of a run."""

from rich import box
from rich.table import Table

from distributed.launch import Result
from distributed.progress import duration


def summary_table(result: Result) -> Table:
    """Return one row per direction of the final evaluation, RSUM below."""
    metrics = result.metrics
    split = "test" if "test/rsum" in metrics else "val"
    table = Table(
        box=box.SIMPLE_HEAD,
        title=f"{result.run_dir.name}: retrieval on {split}",
        title_justify="left",
        caption=f"RSUM [bold]{metrics[f'{split}/rsum']:.1f}[/] of 600",
        caption_justify="left",
    )
    table.add_column("", no_wrap=True)
    for heading in ("R@1", "R@5", "R@10", "average", "median rank", "mean rank", "mAP@5"):
        table.add_column(heading, justify="right")
    for way, name in (("i2t", "image → text"), ("t2i", "text → image")):
        table.add_row(
            name,
            *(f"{metrics[f'{split}/{way}/{key}']:.1f}" for key in ("r1", "r5", "r10", "average_recall")),
            f"{metrics[f'{split}/{way}/median_rank']:g}",
            f"{metrics[f'{split}/{way}/mean_rank']:.1f}",
            f"{metrics[f'{split}/{way}/map5']:.3f}",
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
