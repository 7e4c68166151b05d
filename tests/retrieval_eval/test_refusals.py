"""What `evaluate` refuses, and whether it says where."""

import numpy as np
import pytest
import torch

from allpairs.errors import UserError
from retrieval_eval import evaluate

EYE = np.eye(8)
IDS = list(range(100, 108))


def broken(row, value):
    matrix = EYE.copy()
    matrix[row, 2] = value
    return matrix


@pytest.mark.parametrize(
    ("arguments", "keywords", "said"),
    [
        ((broken(3, np.nan), EYE, IDS, IDS), {}, r"queries .*NaN or infinite.* row 3 \(id 103\)"),
        ((EYE, broken(5, -np.inf), IDS, IDS), {}, r"gallery .*NaN or infinite.* row 5 \(id 105\)"),
        ((EYE, broken(5, 1e300), IDS, IDS), {}, r"gallery .* row 5"),  # infinite once it is float32
        ((np.full((8, 8), np.nan), EYE, IDS, IDS), {}, r"rows 0 \(id 100\), 1 .* and 3 more"),
        ((np.empty((0, 8)), EYE, [], IDS), {}, "queries is empty"),
        ((EYE, np.empty((0, 8)), IDS, []), {}, "gallery is empty"),
        ((EYE[0], EYE, IDS, IDS), {}, r"queries must be a matrix .* \[8\]"),
        ((EYE[None], EYE, IDS, IDS), {}, r"queries must be a matrix .* \[1, 8, 8\]"),
        ((EYE[:, :5], EYE, IDS, IDS), {}, "5 dimensions but the gallery has 8"),
        ((EYE, EYE, IDS[:7], IDS), {}, "queries has 8 rows but 7 ids"),
        ((EYE, EYE, IDS, [*IDS, 1]), {}, "gallery has 8 rows but 9 ids"),
        ((EYE > 0, EYE, IDS, IDS), {}, "real numbers, got torch.bool"),
        ((EYE, EYE, IDS, IDS), {"ks": (0, 1)}, "ks must be positive"),
        ((EYE, EYE, IDS, IDS), {"query_name": "t"}, "both 't'"),
        ((EYE, EYE), {}, "nothing says which pairs are positive"),
        ((EYE, EYE, IDS), {}, "nothing says which pairs are positive"),
        ((EYE, EYE, [*IDS[:6], 1, 2], IDS), {}, r"2 of 8 i2t queries have no positive: rows 6 \(id 1\), 7 \(id 2\)"),
        ((EYE, EYE, IDS, [*IDS[:7], 100]), {}, r"1 of 8 i2t queries have no positive: row 7 \(id 107\)"),
        ((EYE[:4], EYE, IDS[:4], IDS), {}, r"4 of 8 t2i queries have no positive: rows 4 \(id 104\).*--one-way"),
        ((EYE, EYE, IDS, [str(i) for i in IDS]), {}, "ids of one kind"),
        ((EYE, EYE, np.array(IDS, float), IDS), {}, "query_ids must be one list of integers or of strings"),
        ((EYE, EYE), {"positives": [[0]] * 7}, "7 lists for 8 queries"),
        ((EYE, EYE), {"positives": [[0]] * 7 + [[8]]}, r"positives\[7\] holds 8; accepted: gallery indices 0 to 7"),
        ((EYE, EYE), {"positives": [[0]] * 7 + [[-1]]}, r"positives\[7\] holds -1"),
        ((EYE, EYE), {"positives": [[0]] * 7 + [[0.5]]}, r"positives\[7\] must be a list of gallery indices"),
        ((EYE, EYE), {"positives": [[0]] * 7 + [[]]}, "1 of 8 i2t queries have no positive: row 7"),
        ((EYE * 1e30, EYE * 1e30, IDS, IDS), {}, "could overflow float32"),
        (([[1.0, 2.0], [1.0]], EYE, IDS, IDS), {}, r"queries must be a matrix .* list that is none"),
        (({"a": 1}, EYE, IDS, IDS), {}, "queries must hold real numbers, got a dict of object"),
        ((None, EYE, IDS, IDS), {}, "queries must hold real numbers, got a NoneType"),
        ((EYE, [["a"] * 8] * 8, IDS, IDS), {}, "gallery must hold real numbers, got a list of <U1"),
        ((EYE, np.full((8, 8), None), IDS, IDS), {}, "gallery must hold real numbers, got a ndarray of object"),
        ((EYE * 1j, EYE, IDS, IDS), {}, "queries must hold real numbers, got torch.complex128"),
        ((torch.eye(8, device="meta"), EYE, IDS, IDS), {}, "queries must be a dense tensor .* device meta"),
        (
            (torch.eye(8).to_sparse(), EYE, IDS, IDS),
            {},
            r"queries must be a dense tensor .* sparse_coo; .*to_dense\(\)",
        ),
        (([torch.ones(8), torch.ones(7)], EYE, IDS, IDS), {}, r"queries must be a matrix .*torch\.stack"),
        ((EYE, EYE, torch.arange(8.0), IDS), {}, r"query_ids must be .* float32; accepted: .*\.long\(\)"),
        ((EYE, EYE, IDS, [0, *"abcdefg"]), {}, r"gallery_ids must be .* got both: gallery_ids\[0\] is 0"),
        ((EYE, EYE, 5, IDS), {}, "query_ids must be one list of integers or of strings, got 5"),
        ((EYE, EYE, set(IDS), IDS), {}, "query_ids must be one list of integers or of strings, got {"),
        ((EYE, EYE, (each for each in IDS), IDS), {}, "query_ids must be one list .* got <generator"),
        ((EYE, EYE, [[1], [2, 3]], IDS), {}, "query_ids must be one list .* of several lengths"),
        ((EYE, EYE, [None] * 8, IDS), {}, "query_ids must be one list .* got 1 dimensions of object"),
        ((EYE, EYE, np.array([2**63, *range(7)], np.uint64), IDS), {}, "query_ids holds 9223372036854775808"),
        ((EYE, EYE, [7] * 8, [7] * 8), {}, r"all ids are 7, so every gallery item is a positive of every query"),
        ((EYE, EYE, ["x"] * 8, ["x"] * 8), {}, r"all ids are x, .* nothing is to rank"),
        ((EYE, EYE), {"positives": 5}, "positives must be one list of gallery indices per query, got 5"),
        ((EYE, EYE), {"positives": [[0]] * 7 + [[[1], [2, 3]]]}, r"positives\[7\] must be a list of gallery indices"),
        ((EYE, EYE, IDS, IDS), {"ks": 5}, "ks must be positive integers, .* got 5"),
        ((EYE, EYE, IDS, IDS), {"ks": "5"}, "ks must be positive integers, .* got '5'"),
        ((EYE, EYE, IDS, IDS), {"ks": (1, 2.5)}, "ks must be positive integers"),
        ((EYE, EYE, IDS, IDS), {"ks": (1, True)}, "ks must be positive integers"),
        ((EYE, EYE, IDS, IDS), {"device": "tpu"}, r"device='tpu' cannot be used here .*; accepted: cpu"),
        ((EYE, EYE, IDS, IDS), {"device": "cuda:99"}, r"device='cuda:99' cannot be used here"),
        ((EYE, EYE, IDS, IDS), {"tile": 0}, "tile=0; accepted: the side of a tile"),
        ((EYE, EYE, IDS, IDS), {"tile": 2.5}, r"tile=2\.5; accepted"),
        ((EYE, EYE, IDS, IDS), {"shards": "2"}, "shards='2'"),
    ],
)
def test_refuses_and_names_the_rows(arguments, keywords, said):
    with pytest.raises(UserError, match=said) as caught:
        evaluate(*arguments, **keywords)
    assert "\n" not in str(caught.value)


def test_string_ids_and_tensors_of_ids_are_accepted():
    names = [f"image {i}" for i in range(8)]
    assert evaluate(EYE, EYE, names, names).metrics["rsum"] == 600
    assert evaluate(EYE, EYE, torch.arange(8), np.arange(8, dtype=np.int32)).metrics["rsum"] == 600


LISTS = EYE.tolist()


@pytest.mark.parametrize(
    "matrix",
    [LISTS, tuple(map(tuple, LISTS)), list(torch.eye(8)), EYE.astype(int), EYE.astype(np.longdouble), EYE[::-1][::-1],
     EYE.astype(">f4"), EYE.astype(np.float16), torch.eye(8).bfloat16(), torch.eye(8).half().requires_grad_(),
     torch.eye(8, dtype=torch.int32)],
    ids=str,
)  # fmt: skip
def test_matrices_of_any_kind_are_accepted_beside_full_precision(matrix):
    expected = evaluate(EYE, np.roll(EYE, 1, 1), IDS, IDS).metrics
    assert evaluate(matrix, np.roll(EYE, 1, 1), IDS, IDS).metrics == expected
    assert evaluate(torch.eye(8).roll(1, 1), matrix, tuple(IDS), np.array(IDS)).metrics == expected


def test_one_image_with_its_captions_has_nothing_but_positives():
    assert evaluate(EYE[:1], EYE[:5], [1], [1] * 5).metrics["rsum"] == 600


def test_distractors_are_accepted_in_one_direction():
    report = evaluate(EYE[:4], EYE, IDS[:4], IDS, both_directions=False)
    assert report.metrics["i2t/r1"] == 100
    assert not any(name.startswith("t2i") or name == "rsum" for name in report.metrics)
