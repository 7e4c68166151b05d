"""Exact retrieval evaluation: ranks by counting, honest ties, FAISS shortlists, and a report in one HTML file.

- `evaluate`: the function (and, as ``python -m retrieval_eval.evaluate``, the command): metrics of two matrices.
- `compare`: the command that compares two runs; `comparison`: how; `seeds`: with several seeds a side.
- `metrics`: the registry of metrics, and the one place that combines them.
- `inputs`, `positives`: what is accepted, and which items answer which query.
- `norms`: how long embeddings are, and what that makes of ranking by the inner product.
- `tiles`, `counting`: the fixed grid of score tiles, and exact counts over it.
- `sharded`: counting in gallery slices, here or over Ray actors, resumable.
- `ties`, `whole_ranking`: from counts to ranks, recalls, precisions and nDCG.
- `protocols`, `subset`, `ensemble`, `measure`, `folds`: what is measured under a name, in which folds.
- `uncertainty`: bootstrap intervals over images.
- `report`: what an evaluation found.
- `indexes`, `shortlist`: FAISS on GPUs and the CPU; `searched`: recalls from its lists, the engine ``faiss``.
- `cross_check`, `approximate`: exact ranks beside a search, and what approximate search loses.
- `rerank`: scorers.
- `manifest`, `summary`, `exports`, `page`, `output`: the record, tables, files and reports of a measurement.
- `run_files`: what a training run leaves; `yaml_text`: the one reader of YAML that users write.
- `ray_cluster`: the one way to Ray.
"""

from retrieval_eval.evaluate import evaluate

__all__ = ["evaluate"]
