"""The report of an evaluation: one self-contained HTML file."""

from retrieval_eval.page.write import write_report as write_report
