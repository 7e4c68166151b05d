"""Approximate search, for galleries too large to search exactly, and what it costs in recall: `measure_gap`.

- `indexes`: FAISS indexes with parameters that suit a gallery.
- `gap`: how far their answers are from exact ones.
"""

from retrieval_eval.approximate.gap import Gap, gap_table, measure_gap
from retrieval_eval.approximate.indexes import KINDS

__all__ = ["KINDS", "Gap", "gap_table", "measure_gap"]
