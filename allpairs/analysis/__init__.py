"""What objectives do with a batch: contributing samples, tangential gradient norms, triplet diagrams.

On the command line: ``python -m allpairs.analysis counts|table|gradients|diagrams``.
"""

from allpairs.analysis.contributing import count_contributing
from allpairs.analysis.embeddings import Embeddings, Origin
from allpairs.analysis.gradients import TangentialNorms, tangential_norms

__all__ = ["Embeddings", "Origin", "TangentialNorms", "count_contributing", "tangential_norms"]
