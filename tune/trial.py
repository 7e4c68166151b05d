"""One trial: a configuration made of the base, the search's overrides and the values drawn, and the run of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from allpairs.errors import UserError
from distributed.config import Config, validate
from distributed.config.load import apply, read
from distributed.config.tree import Train
from tune.config import SEED, Search
from tune.points import Point, combinations, draws, one_at_a_time, probe_points, with_seeds
from tune.results import evaluations
from tune.space import describe

# More points than this are checked value by value instead of all together.
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
        tree = apply(self._tree, values.items())
        tree["run"] = {"name": search.run_name(trial_id), "dir": str(search.run_dir(trial_id).parent)}
        config = validate(tree, source=f"{search.base} with {describe(values)}")
        root = self.here / config.data.root.expanduser()
        return config.model_copy(update={"data": config.data.model_copy(update={"root": root})})

    @property
    def points(self) -> list[Point]:
        """What each trial sets, the references last, one seed of all first; none for optuna, whose draws come later.

        Raises:
            UserError: one key is varied at a time, and the configuration says nothing of the others.
        """
        search = self.search
        if search.algorithm == "optuna":
            return []
        if search.algorithm == "random":
            found = draws(search.space, search.trials or 1, search.seed)
        elif search.algorithm == "one_at_a_time":
            found = one_at_a_time(search.space, self.home)
        else:
            found = combinations(search.space)
        points = [Point(values) for values in found] + [Point(values, reference=True) for values in search.references]
        if search.seeds == 1:
            return points
        first = _value(self._tree, SEED, default=Train().seed)
        return with_seeds(points, SEED, range(first, first + search.seeds))

    @property
    def home(self) -> dict[str, Any]:
        """The values of the searched keys in the configuration: what `one_at_a_time` keeps while it varies another."""
        home = {key: _value(self._tree, key, default=None) for key in self.search.space}
        for key, value in home.items():
            if value is None:
                raise UserError(
                    f"{key}: one_at_a_time keeps it while other keys vary, and neither {self.search.base} nor overrides"
                    " has a value"
                )
        return home

    @property
    def count(self) -> int:
        """How many trials there are."""
        return len(self.points) or self.search.trials or 1

    @property
    def _tree(self) -> dict[str, Any]:
        ours = {"tracking.group": self.search.name, "tracking.job_type": "tune"}
        return apply(self.base, (ours | self.search.overrides).items())

    def check(self) -> list[Config]:
        """Load every configuration the search may come to (for a range: at its ends), before anything starts.

        Raises:
            UserError: a key or value that the configuration refuses.
        """
        search = self.search
        points = self.points
        few = len(points) <= _CHECKED_TOGETHER
        probes = probe_points(search.space) if search.draws or not few else []
        checked = [*probes, *(point.values for point in points if few or point.reference)]
        configs = [self.config(values, "check") for values in checked]
        shortest = min(config.train.epochs if config.train.samples is None else search.grace for config in configs)
        if search.scheduler == "asha" and search.grace > shortest:
            raise UserError(f"grace={search.grace} is longer than train.epochs={shortest}; accepted: at most that many")
        return configs


def _value(tree: Mapping[str, Any], key: str, default: Any) -> Any:
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return default if node is None else node


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
