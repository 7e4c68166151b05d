"""One trial: a configuration made of the base, the search's overrides and the values drawn, and the run of it."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from allpairs.errors import UserError
from distributed.config import Config, validate
from distributed.config.load import apply, read
from tune.config import Search
from tune.results import evaluations
from tune.space import combinations, describe, one_at_a_time

# More combinations of a grid than this are checked value by value instead of all together.
_CHECKED_TOGETHER = 2000


@dataclass(frozen=True)
class TrialPlan:
    """What all trials share, fixed where and when the search starts."""

    search: Search
    base: Mapping[str, Any]
    """The base configuration as its file says it."""
    here: Path
    """Folder that relative paths are meant from: trials run in folders of their own."""

    @classmethod
    def of(cls, search: Search) -> Self:
        """Read the base configuration of `search`."""
        return cls(search, read(search.base), Path.cwd())

    def config(self, values: Mapping[str, Any], trial_id: str) -> Config:
        """Return the configuration of a trial with `values` for the searched keys.

        Raises:
            UserError: the resulting configuration is not valid; the message names the key and the nearest valid one.
        """
        search = self.search
        ours = {"tracking.group": search.name, "tracking.job_type": "tune"}
        tree = apply(self.base, (ours | search.overrides).items())
        tree = apply(tree, values.items())
        tree["run"] = {"name": search.run_name(trial_id), "dir": str(search.run_dir(trial_id).parent)}
        config = validate(tree, source=f"{search.base} with {describe(values)}")
        root = self.here / config.data.root.expanduser()
        return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})

    def check(self) -> list[Config]:
        """Load every configuration the search may come to (for a range: at its ends), before anything starts.

        Raises:
            UserError: a key or value that the configuration refuses.
        """
        search = self.search
        count = math.prod(len(domain.probes) for domain in search.space.values())
        together = search.algorithm == "grid" and count <= _CHECKED_TOGETHER
        probes = combinations(search.space) if together else one_at_a_time(search.space)
        configs = [self.config(values, "check") for values in probes]
        shortest = min(config.train.epochs if config.train.samples is None else search.grace for config in configs)
        if search.scheduler == "asha" and search.grace > shortest:
            raise UserError(f"grace={search.grace} is longer than train.epochs={shortest}; accepted: at most that many")
        return configs


def run_trial(plan: TrialPlan, values: Mapping[str, Any]) -> None:
    """Train one trial inside a Ray Tune function; one that ran before goes on, a finished one reports at once.

    A trial that the scheduler asked to stop returns with its checkpoint; one of a search that was asked never returns.
    """
    import ray.tune
    from ray.tune.integration.ray_train import TuneReportCallback

    from distributed.launch import fit
    from distributed.run_directory import RunDirectory
    from distributed.stopping import stop_flag
    from tune.stopping import park, parked_flag

    trial_id = ray.tune.get_context().get_trial_id()
    config = plan.config(values, trial_id)
    run = RunDirectory(config.run_dir)
    parked_flag(plan.search, trial_id).clear()
    stop_flag(run.root).clear()
    search_stops = stop_flag(plan.search.folder)
    evaluated_before = len(evaluations(run))
    if not search_stops.is_set():
        fit(config, resume="auto", callbacks=[TuneReportCallback()])
    if search_stops.is_set() and not run.summary.exists():
        park(plan.search, trial_id)
    measured = evaluations(run)
    if len(measured) == evaluated_before:  # interrupted after its last epoch: all was measured, Tune wants a result
        ray.tune.report(measured[-1])
