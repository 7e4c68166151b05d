"""A notice that a node will be taken away (spot machines, a drain): what of it the ranks need to know.

Ray tells every worker; rank 0 reads what it was told itself. `ray.train.get_preemption_info` would have every rank wait
for all others, each time it is asked.
"""

import time
from dataclasses import dataclass

LEAD = 15.0
"""Seconds before a node goes at which the ranks save once more, so that what they did since the notice is kept."""


@dataclass
class PreemptionNotice:
    """Asks for a checkpoint at once, and for another `LEAD` seconds before the node goes; for every new notice."""

    noticed: float | None = None
    """The deadline that was acted upon, seconds of the epoch; infinite where none was named."""
    last_saved: bool = False

    def __call__(self) -> bool:
        """Whether a checkpoint is due now, by what Ray told this worker."""
        return self.due(_deadline(), time.time())

    def due(self, deadline: float | None, now: float) -> bool:
        """Whether a checkpoint is due at `now`; once each. `deadline`: when the node goes, None without a notice."""
        if deadline is None:
            return False
        if deadline != self.noticed:
            self.noticed, self.last_saved = deadline, deadline - now < 2 * LEAD  # too near for two
            return True
        if not self.last_saved and deadline - now <= LEAD:
            self.last_saved = True
            return True
        return False


def _deadline() -> float | None:
    from ray.train.v2._internal.execution.context import get_train_context

    notice = get_train_context().preemption_context.preemption_info
    if notice is None:
        return None
    return float("inf") if notice.deadline_ms is None else notice.deadline_ms / 1000
