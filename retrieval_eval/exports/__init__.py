"""What others read: a Parquet table of the queries, TREC files, and rows for a paper's table."""

from retrieval_eval.exports.write import write_exports

__all__ = ["write_exports"]
