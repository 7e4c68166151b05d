"""Let Weights & Biases have what it lacks of a run: `python -m distributed.tracking sync RUN... [--upload]`."""

from pathlib import Path
from typing import Annotated

from cyclopts import App, Parameter

from allpairs.command import run as run_command
from allpairs.files import existing
from distributed.run_directory import RunDirectory
from distributed.tracking.sync import sync as sync_run

app = App(name="python -m distributed.tracking", help=__doc__, version_flags=[])


@app.command
def sync(
    runs: Annotated[list[Path], Parameter(negative=())],
    /,
    *,
    upload: Annotated[bool, Parameter(negative=())] = False,
) -> None:
    """Let W&B have the rows of metrics.jsonl that it lacks, for runs that have ended; nothing is sent twice.

    Parameters
    ----------
    runs
        Run directories. What was tracked with `tracking.wandb=online` is sent on from where the server stands.
    upload
        Send runs that were tracked offline, or not at all, to the server.
    """
    for folder in runs:
        run = RunDirectory(existing(folder).resolve())
        print(f"{folder}: {sync_run(run, upload=upload)}", flush=True)


if __name__ == "__main__":
    run_command(app)
