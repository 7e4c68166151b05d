"""Evaluation of scorers, models that compare a query and a gallery item rather than embed each: `rerank`, `score_all`.

first_stage = evaluate(images, captions, image_ids, caption_ids)          # of pooled vectors
found = rerank(score, images, captions, first_stage, k=128)               # the first 128 of each query
found = rerank(score, images, captions, first_stage, k=128, map=over_actors(4))
found = score_all(score, Positives.from_ids(image_ids, caption_ids))      # every pair: no first stage

- `shortlisted`, `exhaustive`: the first k of every query, or every pair.
- `scoring`, `actors`: jobs of a scorer, here or over Ray actors.
- `result`: the report.
"""

from retrieval_eval.rerank.actors import over_actors
from retrieval_eval.rerank.exhaustive import score_all
from retrieval_eval.rerank.result import Reranked
from retrieval_eval.rerank.shortlisted import rerank

__all__ = ["Reranked", "over_actors", "rerank", "score_all"]
