"""Files of JSON lines that somebody else is still writing, or was writing when it was killed."""

import json
from pathlib import Path

import pytest

from allpairs.errors import UserError
from retrieval_eval.run_files import read_rows

ROWS = [{"step": 1, "text": "9×1 CPU"}, {"step": 2, "text": "a\u2028b\u0085c"}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


@pytest.mark.parametrize("cut", range(1, len(LINES) + 1))
def test_every_moment_of_writing_reads_as_the_rows_that_are_whole(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES[:cut])
    whole = [row for row in ROWS if json.dumps(row, ensure_ascii=False).encode() in LINES[:cut]]
    assert read_rows(path) == whole


def test_a_missing_file_has_no_rows_and_a_blank_line_is_none(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "none.jsonl") == []
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n" + LINES + b"\n")
    assert read_rows(path) == ROWS


@pytest.mark.parametrize("line", [b"{", b"[1]", b"3", b"\xff"])
def test_a_line_that_is_no_row_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_bytes(LINES + line + b"\n" + LINES)
    with pytest.raises(UserError, match=r"rows\.jsonl, line 3: not a JSON object"):
        read_rows(path)
