"""Weights in the pieces of several processes: joined to what one file holds, with one tensor in memory at a time."""

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from allpairs.errors import UserError
from allpairs.models import pieces
from allpairs.models.pieces import SavedPieces, WeightPiece, join_pieces, read_weights, write_pieces, write_weights

WHOLE = {
    "matrix": torch.arange(15.0).view(5, 3),
    "half": torch.arange(7.0).to(torch.bfloat16),
    "count": torch.tensor(3),
    "mask": torch.tensor([[True], [False]]),
    "nothing": torch.empty(0, 4),
}


def cut(rank: int, world: int) -> list[WeightPiece]:
    """A rank's part of each tensor; scalars are rank 0's."""
    found = []
    for name, tensor in WHOLE.items():
        flat, most = tensor.flatten(), -(-tensor.numel() // world)
        start = min(rank * most, len(flat))
        found.append(WeightPiece(name, tuple(tensor.shape), start, flat[start : start + most].clone()))
    return [piece for piece in found if len(piece.values) or (piece.name == "nothing" and rank == 0)]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_pieces_are_joined_to_what_was_cut(tmp_path, world) -> None:
    for rank in range(world):
        write_pieces(tmp_path, "model", cut(rank, world), rank)
    join_pieces(SavedPieces(tmp_path, "model"), tmp_path / "joined.safetensors")
    save_file(WHOLE, tmp_path / "expected.safetensors")
    for found in (read_weights(tmp_path, "model"), load_file(tmp_path / "joined.safetensors")):
        assert found.keys() == WHOLE.keys()
        assert all(
            torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype for name, tensor in WHOLE.items()
        )


def test_what_is_whole_is_one_file_that_other_tools_read(tmp_path) -> None:
    write_weights(tmp_path, "model", cut(0, 1))
    assert all(torch.equal(load_file(tmp_path / "model.safetensors")[name], tensor) for name, tensor in WHOLE.items())


def test_no_more_than_one_tensor_is_held_while_they_are_joined(tmp_path, monkeypatch) -> None:
    write_pieces(tmp_path, "model", cut(0, 2), 0)
    write_pieces(tmp_path, "model", cut(1, 2), 1)
    read, held, most = SavedPieces.read, [], []

    def watched(self, tensor):
        assert not any(reference() is not None for reference in held), "the one before is still in memory"
        whole = read(self, tensor)
        held.append(weakref.ref(whole))
        most.append(whole.nbytes)
        return whole

    monkeypatch.setattr(SavedPieces, "read", watched)
    join_pieces(SavedPieces(tmp_path, "model"), tmp_path / "joined.safetensors")
    assert len(most) == len(WHOLE)
    assert max(most) == WHOLE["matrix"].nbytes


def test_what_is_missing_is_said(tmp_path) -> None:
    with pytest.raises(UserError, match=r"no model\.safetensors in it$"):
        read_weights(tmp_path, "model")
    write_pieces(tmp_path, "model", cut(0, 2), 0)
    with pytest.raises(UserError, match=r"matrix has 15 elements, not all of which are there"):
        read_weights(tmp_path, "model")
    (tmp_path / pieces.rank_file("model", 1)).write_bytes(b"no tensors")
    with pytest.raises(UserError, match=r"rank-00001\.safetensors: not a readable piece of weights"):
        read_weights(tmp_path, "model")
