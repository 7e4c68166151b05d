"""The report of an evaluation, and the comparison of two: one self-contained HTML file each."""

from retrieval_eval.page.compared import write_comparison as write_comparison
from retrieval_eval.page.write import write_report as write_report
