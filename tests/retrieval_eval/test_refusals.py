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
    ],
)
def test_refuses_and_names_the_rows(arguments, keywords, said):
    with pytest.raises(UserError, match=said):
        evaluate(*arguments, **keywords)


def test_string_ids_and_tensors_of_ids_are_accepted():
    names = [f"image {i}" for i in range(8)]
    assert evaluate(EYE, EYE, names, names).metrics["rsum"] == 600
    assert evaluate(EYE, EYE, torch.arange(8), np.arange(8, dtype=np.int32)).metrics["rsum"] == 600


def test_distractors_are_accepted_in_one_direction():
    report = evaluate(EYE[:4], EYE, IDS[:4], IDS, both_directions=False)
    assert report.metrics["i2t/r1"] == 100
    assert not any(name.startswith("t2i") or name == "rsum" for name in report.metrics)
