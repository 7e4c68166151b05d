"""What objectives do with a batch: contributing samples, tangential gradient norms, triplet diagrams.

On the command line: ``python -m allpairs.analysis counts|table|gradients|diagrams``.

- `weights`, `batches`, `variants`: the weights of one direction, batches of embeddings, objectives by arguments.
- `contributing`, `cocos`, `count_tables`, `count_figures`: COCOS' counts, of a batch and over a data set.
- `gradients`, `synthetic`, `spreading`, `gradient_tables`, `gradient_figures`: tangential gradient norms.
- `diagrams`, `diagram_tables`, `diagram_figures`: triplet diagrams.
- `figure`: how figures look and are written.
"""

from allpairs.analysis.contributing import count_contributing
from allpairs.analysis.gradients import TangentialNorms, tangential_norms

__all__ = ["TangentialNorms", "count_contributing", "tangential_norms"]
