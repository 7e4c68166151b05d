"""ASHA that asks: a trial that lags behind saves a checkpoint and ends by itself, where Ray's own would be killed."""

from typing import TYPE_CHECKING, Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from distributed.run_directory import RunDirectory
from distributed.stopping import stop_flag
from tune.config import Search
from tune.progress import note
from tune.results import evaluations

if TYPE_CHECKING:
    from ray.tune.execution.tune_controller import TuneController
    from ray.tune.experiment import Trial


class AskingASHA(ASHAScheduler):
    """Ray's decisions; what becomes of a trial to be stopped is a request to its ranks, as by a signal."""

    def __init__(self, search: Search, epochs: int) -> None:
        # Our own epochs: Tune's training_iteration starts over after a restore. Beyond the last epoch, because a trial
        # that reaches max_t is stopped, and ours have a report to write then.
        super().__init__(
            time_attr="epoch", max_t=epochs + 1, grace_period=search.grace, reduction_factor=search.reduction
        )
        self._search = search
        self._asked: set[str] = set()
        self._remembers = False

    def on_trial_result(self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]) -> str:
        """Return that the trial continues, and ask it to stop where ASHA would stop it."""
        if not self._remembers:
            self._remembers = True
            for other in tune_controller.get_trials():
                self._remember(tune_controller, other, before=result["epoch"] if other is trial else None)
        self._decide(tune_controller, trial, result)
        return TrialScheduler.CONTINUE

    def _decide(self, tune_controller: "TuneController", trial: "Trial", result: dict[str, Any]) -> None:
        if trial.trial_id in self._asked:
            return
        decision = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP and not trial.is_finished():
            self._asked.add(trial.trial_id)
            note(self._search, "stopping", trial, f"lags behind at epoch {result['epoch']:g}: it saves and stops early")
            stop_flag(self._search.run_dir(trial.trial_id)).set()

    def _remember(self, tune_controller: "TuneController", trial: "Trial", *, before: float | None) -> None:
        """Hear what was measured before an interruption: Tune restores its trials, not what their scheduler knew."""
        rows = evaluations(RunDirectory(self._search.run_dir(trial.trial_id)))
        # What Tune has yet to tell is left to it: ASHA decides when it hears of an epoch for the first time.
        limit = (trial.last_result or {}).get("epoch", 0) + 1 if before is None else before
        told = [row for row in rows if row["epoch"] < limit]
        if told and trial.trial_id not in self._trial_info:
            super().on_trial_add(tune_controller, trial)
        for row in told:
            self._decide(tune_controller, trial, row)
