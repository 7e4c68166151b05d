"""The chain over a run's samples: what it must not depend on, and what it must."""

import hashlib
import json

import numpy as np
import pytest

from distributed.certificate import LIMBS, digest, extend
from tests.distributed.test_loop import rows, train

KEYS, CAPTIONS = ["a", "b", "c"], ["one", "two", "three"]


def test_the_digest_is_the_sum_of_the_rows_hashes() -> None:
    total = sum(
        int.from_bytes(hashlib.sha256(f"{key}\0{text}".encode()).digest()[:16], "little")
        for key, text in zip(KEYS, CAPTIONS, strict=True)
    )
    limbs = digest(KEYS, CAPTIONS)
    assert sum(limb * 2 ** (32 * place) for place, limb in enumerate(limbs)) == total % 2**128
    expected = hashlib.sha256(f"abc 7 {total % 2**128:x}".encode()).hexdigest()[:32]
    assert extend("abc", 7, [float(limb) for limb in limbs]) == expected


@pytest.mark.parametrize("cuts", [[1], [2], [0], [1, 2]])
def test_ranks_and_the_order_of_rows_do_not_show(cuts) -> None:
    whole = extend("", 1, digest(KEYS, CAPTIONS))
    parts = np.split(np.arange(3)[::-1], cuts)
    sums = np.sum([digest([KEYS[i] for i in part], [CAPTIONS[i] for i in part]) for part in parts], axis=0, dtype=float)
    assert extend("", 1, sums) == whole


def test_another_sample_caption_step_or_history_shows() -> None:
    chains = {
        extend("", 1, digest(KEYS, CAPTIONS)),
        extend("", 1, digest(["a", "b", "d"], CAPTIONS)),
        extend("", 1, digest(KEYS, ["one", "two", "four"])),
        extend("", 1, digest(KEYS, ["two", "one", "three"])),
        extend("", 1, digest(["a", "b", "c", "c"], [*CAPTIONS, "three"])),
        extend("", 2, digest(KEYS, CAPTIONS)),
        extend(extend("", 1, digest(KEYS, CAPTIONS)), 1, digest(KEYS, CAPTIONS)),
        extend("", 1, [0.0] * LIMBS),
    }
    assert len(chains) == 8


def test_a_resumed_run_has_the_chain_of_an_undisturbed_one_and_another_seed_has_not(tiny_config) -> None:
    whole, summary, _ = train(tiny_config("whole"))
    part, _, _ = train(tiny_config("part", train={"stop_after_epochs": 1.4}))
    part, again, _ = train(tiny_config("part"), resume=True)
    assert summary["certificate"] == again["certificate"] == json.loads(part.summary.read_text())["certificate"]
    one, other = rows(whole, "train/certificate"), rows(part, "train/certificate")
    assert len(one.keys() & other.keys()) >= 8
    assert all(one[step] == other[step] for step in one.keys() & other.keys())
    assert summary["certificate"] in whole.report.read_text()
    reseeded, _, _ = train(tiny_config("other", train={"seed": 1, "stop_after_epochs": 1}))
    assert not set(rows(reseeded, "train/certificate").values()) & set(one.values())
