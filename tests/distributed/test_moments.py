"""The optimiser's state on disk: ranges of flattened parameters, read in other ranges than they were written in."""

import pytest
import torch

from allpairs.errors import UserError
from allpairs.hashes import files_in
from allpairs.models.pieces import rank_file
from distributed.strategies.moments import (
    FOLDER,
    MOMENTS,
    Piece,
    SavedMoments,
    state_of,
    write_moments,
)

FIRST, SECOND = torch.arange(10.0), torch.arange(10.0) ** 2


def piece(start: int, stop: int, name: str = "weight") -> Piece:
    return Piece(name, start, 7, dict(zip(MOMENTS, (FIRST[start:stop], SECOND[start:stop]), strict=True)))


def test_ranges_are_joined_and_cut_as_asked(tmp_path) -> None:
    for rank, (start, stop) in enumerate([(0, 3), (3, 3), (3, 7), (7, 10)]):
        write_moments(tmp_path, [piece(start, stop)] if start < stop else [], rank)
    assert files_in(tmp_path) == [rank_file(FOLDER, rank) for rank in (0, 2, 3)]
    saved = SavedMoments(tmp_path)
    assert saved.step("weight") == 7
    for start in range(10):
        for stop in range(start, 11):
            found = saved.read("weight", start, stop)
            assert torch.equal(found["exp_avg"], FIRST[start:stop])
            assert torch.equal(found["exp_avg_sq"], SECOND[start:stop])
    assert (saved.read("other", 0, 4), saved.step("other")) == (None, 0)


def test_what_is_missing_or_of_an_earlier_version_is_said(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no optimiser's state in it$"):
        SavedMoments(tmp_path)
    write_moments(tmp_path, [piece(0, 8)], rank=0)
    with pytest.raises(UserError, match=r"weight has 10 elements here, 8 in the checkpoint$"):
        SavedMoments(tmp_path).read("weight", 0, 10)
    (tmp_path / rank_file(FOLDER, 0)).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"rank-00000\.safetensors: not a readable optimiser state"):
        SavedMoments(tmp_path)
    (tmp_path / rank_file(FOLDER, 0)).unlink()
    (tmp_path / "optimizer.pt").write_bytes(b"")
    with pytest.raises(UserError, match=r"an earlier version .* model\.init_from="):
        SavedMoments(tmp_path)


def test_a_state_read_back_is_laid_out_as_adamw_s_own() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = torch.randn_like(weight)
    optimizer.step()
    own, ours = optimizer.state[weight], state_of(weight, 1)
    assert own.keys() == ours.keys()
    for name, value in own.items():
        assert (value.shape, value.dtype, value.stride()) == (ours[name].shape, ours[name].dtype, ours[name].stride())
    assert torch.equal(own["step"], ours["step"])
