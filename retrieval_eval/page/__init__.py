"""The report of an evaluation, and the comparison of two: one self-contained HTML file each.

- `write`, `compared`: the two pages.
- `query_results`, `payload`: what a page knows of each query, and how its script reads it.
- `suspects`: pairs that may be right although the data call them wrong.
- `folding`: which words are the same, in a search and in captions.
- `figures`, `times`: its figures; `drawing`: how they are drawn; `assets`: its templates, style and scripts.
"""

from retrieval_eval.page.compared import write_comparison as write_comparison
from retrieval_eval.page.write import write_report as write_report
