"""The engine ``faiss``: recall over the full gallery by searching it for the best K of every query.

A list tells how many items score above a right answer, and how many level with it, as far down as it reaches: recalls
at k and mAP@5 are the ones that counting gives, ties included. What depends on ranks beyond K (median and mean rank,
MRR, nDCG, R-Precision, mAP@R) is left out. Two products add up in different orders, so that near ties may fall
otherwise than where they are counted: `agreement` says how often.

- `search`: the report, direction by direction.
- `found`: what the report keeps of it.
- `lists`: the best K of each query, from one index or from gallery slices in Ray actors.
- `placing`: from lists to counts per right answer.
- `agreement`: the same queries by counting, all of them or a seeded sample.
"""
