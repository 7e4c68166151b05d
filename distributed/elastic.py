"""Runs whose number of workers changes (`cluster.min_workers`): who encodes what, how long to wait, how it is told.

The global batches stay what they are, so each of fewer workers gets more rows of them; more than its usual share it
encodes in chunks of that share (`distributed.cached`), in the memory it had before. Nothing here knows Ray
(`distributed.scaling` does).
"""

from collections.abc import Mapping, Sequence
from typing import Any

from distributed.config import Config
from distributed.config.tree import Cluster
from distributed.progress import duration


def rows_of(global_batch: int, world: int) -> int:
    """Return how many rows of a global batch the rank with the most of them has."""
    return -(-global_batch // world)


def rows_at_once(config: Config, world: int) -> int | None:
    """Return how many images each of `world` workers encodes at a time; None: all that it has.

    That is `train.micro_batch` where it is given; in an elastic run with fewer workers than `cluster.workers` the share
    that each would have had.
    """
    cluster, train = config.cluster, config.train
    if train.micro_batch is not None or cluster.min_workers is None or world >= cluster.workers:
        return train.micro_batch
    return rows_of(train.global_batch, cluster.workers)


def with_rows_at_once(config: Config, rows: int | None) -> Config:
    """Return `config` as if `train.micro_batch` were `rows`."""
    return config.model_copy(update={"train": config.train.model_copy(update={"micro_batch": rows})})


def change_of_workers(
    config: Config, before: int, world: int, step: int, why: str | None
) -> tuple[str, dict[str, float]]:
    """Say in one line that `world` workers go on after `step`, where `before` were; return it and its metrics."""
    rows, at_once = rows_of(config.train.global_batch, world), rows_at_once(config, world)
    chunks = f", encoded {at_once} at a time" if at_once is not None and at_once < rows else ""
    reason = why or f"cluster.workers={config.cluster.workers}"
    text = (
        f"{before} → {world} workers ({reason}): step {step + 1:,} goes on with {rows} samples a worker{chunks}, the "
        f"same global batches of {config.train.global_batch}"
    )
    return text, {"train/workers": world, "train/workers_before": before, "train/samples_per_worker": rows}


def reason_for(events: Sequence[Mapping[str, Any]], workers: int) -> str | None:
    """Return why there are now so many `workers`, by a run's events since they last changed; None where none says."""
    for event in reversed(events):
        if event["event"] == "resized":
            return None
        if event["event"] == "decided" and event["workers"] == workers:
            return str(event["text"])
    return None


def workers_over_time(rows: Sequence[Mapping[str, Any]], now: int) -> str:
    """Say how many workers did which steps, by the rows of metrics.jsonl: `2, from step 7 on 1, from step 13 on 2`."""
    changes = [row for row in rows if "train/workers_before" in row]
    if not changes:
        return str(now)
    later = (f"from step {row['step'] + 1:,} on {row['train/workers']}" for row in changes)
    return ", ".join([str(changes[0]["train/workers_before"]), *later])


class WaitedTooLong(RuntimeError):  # noqa: N818 -- a decision of the user's: cluster.wait_minutes
    """The cluster had no room for the workers for `cluster.wait_minutes`."""


class Patience:
    """How long an elastic run waits for all its workers, and from when on it goes on with fewer."""

    def __init__(self, cluster: Cluster, each: str) -> None:
        """`each` says what a worker needs: `1 CPU`."""
        assert cluster.min_workers is not None
        self._least, self._all = cluster.min_workers, cluster.workers
        self._replace = cluster.replace_minutes * 60
        self._limit = None if cluster.wait_minutes is None else cluster.wait_minutes * 60
        self._each = each
        self.rest()

    def rest(self) -> None:
        """Forget what was waited: workers are up."""
        self._since: float | None = None
        self._next, self._pause = 0.0, 5.0

    def look(self, room: int, now: float) -> tuple[int | None, str | None]:
        """Return with how many workers to start, where the cluster has `room` for so many; None to wait; and what to
        say: why they are not all, or, soon and then ever more seldom, what is waited for.

        Raises:
            WaitedTooLong: there was no room for `cluster.min_workers` for `cluster.wait_minutes`.
        """
        if self._since is None:
            self._since, self._next = now, now + self._pause
        waited = now - self._since
        if room >= self._all:
            return self._all, f"there is room for all {self._all}"
        if room >= self._least and waited >= self._replace:
            return room, f"no room for more within cluster.replace_minutes={self._replace / 60:g}"
        asked = f"{self._least} to {self._all} workers of {self._each} asked, room for {room}"
        if self._limit is not None and waited >= max(self._limit, self._replace):
            raise WaitedTooLong(f"{asked} within cluster.wait_minutes={self._limit / 60:g}; --resume goes on")
        if now < self._next:
            return None, None
        self._next, self._pause = now + self._pause, min(2 * self._pause, 300.0)
        if room >= self._least:
            until = f"the run goes on with {room} in {duration(self._replace - waited)}"
        elif self._limit is None:
            until = f"the run goes on with {self._least} once there is room"
        else:
            until = f"the run ends in {duration(max(self._limit, self._replace) - waited)} (cluster.wait_minutes)"
        return None, f"waiting: {asked}; {until}"
