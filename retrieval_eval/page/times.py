"""Where the time of training steps went, as areas on top of each other."""

from typing import Any

import numpy as np

from retrieval_eval.page.drawing import (
    GRID,
    INK,
    PARTS,
    Figure,
    History,
    axis_of,
    draw,
    in_words,
    is_number,
    label_ends,
)

PREFIX = "train/ms_"
REST = "other"
LEAST = 0.02
"""A part with a smaller share of the whole is drawn with the rest."""


def shares(history: History) -> dict[str, float]:
    """Return which share of the time of all steps each part took, as the rows of a run tell it; they add up to 1.

    In the order of the rows' keys; nothing where no row tells.
    """
    times_RP, parts, steps_R = _table(history)
    total = (times_RP * steps_R[:, None]).sum(axis=0)
    return dict(zip(parts, (total / total.sum()).tolist(), strict=True)) if total.sum() > 0 else {}


def time_figure(history: History) -> Figure | None:
    """Draw milliseconds a step by part; None where `history` has fewer than two rows that tell."""
    rows = [row for row in history if _tells(row)]
    whole = shares(history)
    if len(rows) < 2 or not whole:
        return None
    axis = axis_of([rows])
    palette = list(PARTS)
    colour = {part: palette[number % len(palette)] for number, part in enumerate(whole)}
    large = [part for part, share in whole.items() if share >= LEAST and part != REST]
    areas = {part: np.array([row.get(PREFIX + part, 0.0) for row in rows]) for part in large}
    totals = np.array([sum(row[key] for key in row if key.startswith(PREFIX)) for row in rows])
    rest, part_of_rest = totals - sum(areas.values()), 1 - sum(whole[part] for part in large)
    if part_of_rest >= LEAST / 10:
        areas[REST] = rest
    told = {part: whole.get(part, 0.0) if part != REST else part_of_rest for part in areas}
    x = [row[axis] for row in rows]

    def paint(axes: Any) -> None:
        fills = [GRID if part == REST else colour[part] for part in areas]
        axes.stackplot(x, *areas.values(), colors=fills, linewidth=0)
        axes.set_xlim(x[0], x[-1])
        axes.set_xlabel(axis.replace("_", " "))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylim(0, float(np.percentile(totals, 98)) * 1.05)  # one slow row does not flatten the others
        middles = np.cumsum([area[-1] for area in areas.values()]) - [area[-1] / 2 for area in areas.values()]
        ends = [
            (x[-1], min(middle, axes.get_ylim()[1]), f"{part} {told[part]:.0%}", INK if part == REST else colour[part])
            for part, middle in zip(areas, middles, strict=True)
        ]
        label_ends(axes, ends)

    _, _, steps_R = _table(history)
    mean = float((totals * steps_R).sum() / steps_R.sum())
    words = {part: f"{share:.0%} of the time, {share * mean:.3g} ms a step on average" for part, share in told.items()}
    return Figure(
        "Time of a step",
        "milliseconds by part, on rank 0",
        draw(paint, in_words(f"Milliseconds a step by part against {axis.replace('_', ' ')}", words)),
    )


def _tells(row: Any) -> bool:
    return any(key.startswith(PREFIX) and is_number(value) for key, value in row.items())


def _table(history: History) -> tuple[np.ndarray, list[str], np.ndarray]:
    """Return milliseconds a step `[rows, parts]`, the parts, and how many steps each row tells of."""
    rows = [row for row in history if _tells(row)]
    parts = list(dict.fromkeys(key.removeprefix(PREFIX) for row in rows for key in row if key.startswith(PREFIX)))
    times = np.array([[row.get(PREFIX + part, 0.0) for part in parts] for row in rows]).reshape(len(rows), len(parts))
    ends = np.array([row.get("step", number + 1) for number, row in enumerate(rows)], float)
    return times, parts, np.maximum(np.diff(ends, prepend=0.0), 1.0)
