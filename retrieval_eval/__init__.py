"""Exact retrieval evaluation: ranks by counting, honest ties, FAISS shortlists, and a report in one HTML file.

``from retrieval_eval import evaluate`` is the function; ``python -m retrieval_eval.evaluate`` is its command.
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retrieval_eval.evaluation import evaluate as evaluate


class _Package(ModuleType):
    """The package itself, whose `evaluate` is always the function and is loaded (with torch) at its first use.

    Importing the command ``retrieval_eval.evaluate`` makes Python assign that module to the attribute `evaluate`;
    a property with a setter that lets this pass keeps the function in place whatever was imported first.
    """

    @property
    def evaluate(self) -> Any:
        from retrieval_eval.evaluation import evaluate

        return evaluate

    @evaluate.setter
    def evaluate(self, value: Any) -> None:
        if not isinstance(value, ModuleType):
            raise AttributeError("retrieval_eval.evaluate cannot be replaced")


sys.modules[__name__].__class__ = _Package
