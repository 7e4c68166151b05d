"""One margin per pair of a training batch: where `margins.source` takes it from (Unified Eq. 26).

Every source is a function of the data and of which pairs a global batch holds: the same at any world size and after a
resume, with nothing to save.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from allpairs.errors import UserError, nearest
from distributed.data.batch import MarginSource, PairsOf
from distributed.data.dataset import Dataset
from distributed.data.sam import SemanticMargins

if TYPE_CHECKING:
    from distributed.config.tree import Margins


class ColumnMargins:
    """Numbers that came with the pairs: one of the data set's `margin_columns`."""

    def __init__(self, dataset: Dataset, column: str) -> None:
        check_column(dataset, column)
        self._dataset, self._column = dataset, column

    def __call__(self, pairs: PairsOf, size: int, part: slice) -> np.ndarray:
        """Look them up."""
        return np.array([self._margin(*pair) for pair in pairs(part)])

    def _margin(self, row: int, caption: int | None) -> float:
        margins = self._dataset.margins(row, self._column)
        return margins[caption] if caption is not None and margins else 0.0


def check_column(dataset: Dataset, column: str) -> None:
    """Raise UserError, naming what there is, where `dataset` was built without `column`."""
    known = dataset.margin_columns
    if column not in known:
        there = f"it has {', '.join(known)}{nearest(column, known)}" if known else "it has none"
        raise UserError(
            f"margins.column={column}: {dataset.folder} was not built with it: {there} "
            f"(`python -m distributed.data build … --margin-column {column}`)"
        )


def margin_source(
    margins: "Margins", dataset: Dataset, say: Callable[[str], None], *, mask_equal: bool
) -> MarginSource | None:
    """Return what gives the pairs of `dataset` their margins; None where the objective has one for all.

    `say` hears what takes time; `mask_equal`: captions that say the same are no negatives (`data.equal_captions`).

    Raises:
        UserError: the data set lacks the column.
    """
    if margins.column is not None:
        return ColumnMargins(dataset, margins.column)
    if margins.source == "sam":
        return SemanticMargins(dataset, margins.temperature, say, mask_equal=mask_equal)
    return None
