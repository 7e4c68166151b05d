"""The table of the triplet diagrams on a terminal."""

from typing import TYPE_CHECKING

import torch

from allpairs.analysis.diagrams import LANDMARKS
from allpairs.analysis.variants import all_variants
from allpairs.objectives import weights_of_triplets

if TYPE_CHECKING:
    from rich.table import Table


def landmark_table() -> "Table":
    """Return each objective's weights at four triplets (s_pos, s_neg)."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(
        title="Weights: pull on the positive / push on the negative",
        title_justify="left",
        box=SIMPLE_HEAD,
        pad_edge=False,
    )
    table.add_column("objective", no_wrap=True)
    for name in LANDMARKS:
        table.add_column(name, justify="right")
    positive, negative = torch.tensor(list(LANDMARKS.values()), dtype=torch.float64).T
    for variant in all_variants():
        pull, push = weights_of_triplets(variant.make().eval(), positive, negative)
        table.add_row(variant.label, *(f"{one:.2g} / {other:.2g}" for one, other in zip(pull, push, strict=True)))
    return table
