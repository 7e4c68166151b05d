"""What the driver says while it waits for workers."""

import time

import pytest
import ray

from distributed.progress import Waiting


@pytest.mark.parametrize(
    ("state", "said"),
    [
        ("PENDING", dict.fromkeys((5, 10, 20, 40), "waiting: 2×1 CPU asked, 1 free")),
        (
            "CREATED",
            {
                10: "waiting: 2×1 CPU have their place, but after 10 s their processes are not up",
                20: "waiting: 2×1 CPU have their place, but after 20 s their processes are not up",
                40: "waiting: 2×1 CPU have their place, but after 40 s their processes are not up",
            },
        ),
    ],
)
def test_what_workers_wait_for_is_said_within_ten_seconds_then_ever_more_seldom(monkeypatch, state, said) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    group = {"state": state, "bundles": {0: {"CPU": 1}, 1: {"CPU": 1}}}
    monkeypatch.setattr("ray.util.placement_group_table", lambda: {"id": group})
    monkeypatch.setattr(ray, "available_resources", lambda: {"CPU": 1.0})
    waiting = Waiting({"event": "asked", "text": "asking for 2×1 CPU", "workers": 2, "each": {"CPU": 1}})
    told = {}
    for second in range(60):
        now = 100.0 + second
        if text := waiting.look():
            told[second] = text
    assert told == said
