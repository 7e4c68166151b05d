"""Runs that are disturbed on purpose, through Ray: killed, stopped, their checkpoints damaged."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.drills import faults
from benchmarks.drills.drill import drill
from benchmarks.drills.record import Record
from benchmarks.drills.setting import lay_out, shared_ray

THREE_OF_EACH = 3 * [faults.kill_worker, faults.kill_in_checkpoint, faults.kill_driver]


@pytest.fixture(scope="module")
def ray() -> Iterator[tuple[str, int]]:
    with shared_ray() as address_and_process:
        yield address_and_process


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("drills"))


# Odd seeds of this kind start a Ray of their own each time, whose agents outlive a killed driver by a minute.
def test_a_run_that_is_disturbed_again_and_again_ends_as_if_nobody_had(config, ray) -> None:
    verdict = drill("driver", 0, config, ray, [*THREE_OF_EACH, faults.terminate, faults.truncate])
    assert verdict.failure == ""
    assert len(verdict.fired) == 11
    assert any(fault.lost for fault in verdict.fired)
    record = Record(config.parent / "rows.jsonl")
    record.add(verdict)
    assert record.has("driver", 0)
    assert [list(column.cells) for column in record.table().columns[:4]] == [["driver"], ["1"], ["1"], ["11"]]
