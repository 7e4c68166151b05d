"""The file of embeddings: what is written is read, and what does not fit is refused by name."""

import numpy as np
import pytest
from safetensors.numpy import save_file

from allpairs.analysis import Embeddings, Origin
from allpairs.errors import UserError

PARTS = {
    "queries": np.ones((2, 4), np.float32),
    "candidates": np.ones((3, 4), np.float32),
    "query_ids": np.array([5, 6]),
    "candidate_ids": np.array([5, 6, 6]),
}


def test_what_is_written_is_read(make_embeddings, tmp_path):
    written = make_embeddings(
        run="emoji", checkpoint="best", step=12, split="train", objective="vlc", arguments={"scale": 3.5}
    )
    written.write(tmp_path / "new" / "a.safetensors")
    read = Embeddings.read(tmp_path / "new" / "a.safetensors")
    for name in PARTS:
        np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
    assert read.origin == written.origin
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["a.safetensors"]


def test_a_file_without_metadata_is_read(tmp_path):
    save_file(PARTS, tmp_path / "a.safetensors")
    assert Embeddings.read(tmp_path / "a.safetensors").origin == Origin()


BAD = {
    "queries: float32": {"queries": np.ones((2, 4))},
    "queries: float32 ": {"queries": np.ones(4, np.float32)},
    "candidate_ids: int64": {"candidate_ids": np.array([5, 6, 6], np.int32)},
    "same embedding size": {"candidates": np.ones((3, 5), np.float32)},
    "candidates: 3 rows but 2 ids": {"candidate_ids": np.array([5, 6])},
    r"queries\[1\] holds a number that is not finite": {
        "queries": np.array([[1, 2, 3, 4], [1, 2, 3, np.nan]], np.float32)
    },
    r"candidates\[2\] holds": {"candidates": np.array([[1.0] * 4, [1.0] * 4, [np.inf] * 4], np.float32)},
    "6 occurs 2 times": {"query_ids": np.array([6, 6])},
    r"query_ids\[1\] = 7: no candidate has this id": {"query_ids": np.array([5, 7])},
    r"candidate_ids\[2\] = 9: no query has this id": {"candidate_ids": np.array([5, 6, 9])},
}  # fmt: skip


@pytest.mark.parametrize("message", BAD)
def test_parts_that_do_not_fit_are_refused_with_their_name(message, tmp_path):
    save_file(PARTS | BAD[message], tmp_path / "bad.safetensors")
    with pytest.raises(UserError, match=message.strip()) as caught:
        Embeddings.read(tmp_path / "bad.safetensors")
    assert "bad.safetensors" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_of_another_kind_are_refused(tmp_path):
    with pytest.raises(UserError, match="no such file"):
        Embeddings.read(tmp_path / "none.safetensors")
    (tmp_path / "text").write_text("this is not a tensor")
    with pytest.raises(UserError, match="not a safetensors file"):
        Embeddings.read(tmp_path / "text")
    save_file({"queries": PARTS["queries"]}, tmp_path / "half")
    with pytest.raises(UserError, match="no tensor 'candidates'"):
        Embeddings.read(tmp_path / "half")
    save_file(PARTS, tmp_path / "odd", metadata={"origin": '{"rum": 1}'})
    with pytest.raises(UserError, match="origin"):
        Embeddings.read(tmp_path / "odd")
