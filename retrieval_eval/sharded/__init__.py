"""Counting a gallery of any size: in slices, in this process or over Ray actors, resumable, always with the same bits.

The grid of score tiles is fixed by the input. A gallery slice is a range of its tile columns, a unit of work a slice's
range of tile rows; units give integers that add up. So neither the number of slices nor who counts them changes a
result.

- `problem`: what is counted, in units of work.
- `run`, `actors`: units counted, here or by Ray actors.
- `state`: finished units in a folder.
"""

from retrieval_eval.sharded.problem import Problem
from retrieval_eval.sharded.run import count

__all__ = ["Problem", "count"]
