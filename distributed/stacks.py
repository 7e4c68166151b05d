"""Where each rank stands in the code, for a person who asks why one stands still."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from allpairs.files import write_text
from distributed.heartbeat import read_stack
from distributed.run_directory import RunDirectory

INNERMOST = 4
SHOWN = 8


def gather_stacks(run: RunDirectory, places: Mapping[int, str]) -> list[str]:
    """Write the Python stacks of the ranks in `places` (rank: what to call it) into the run's `stacks.txt`.

    Return a line for each of the first ones with its innermost calls, and where the whole stacks are.
    """
    stacks = {rank: read_stack(run.heartbeat(rank)) for rank in places}
    whole = [f"{place}\n" + "".join(f"  {call}\n" for call in stacks[rank]) for rank, place in places.items()]
    with suppress(OSError):  # the lines are still told
        write_text(run.stacks, "\n".join(whole))
    lines = [f"{places[rank]}: {_in_short(stack)}" for rank, stack in list(stacks.items())[:SHOWN]]
    return [*lines, f"the whole stacks of {len(stacks)} rank(s): {run.stacks}"]


def _in_short(stack: list[str]) -> str:
    if not stack:
        return "no stack: its process is stopped, its node is gone, or it moved on"
    calls = []
    for call in reversed(stack[-INNERMOST:]):
        place, _, name = call.rpartition(" ")
        file, _, line = place.rpartition(":")
        calls.append(f"{name} ({'/'.join(Path(file).parts[-2:])}:{line})")
    return " ← ".join(calls)
