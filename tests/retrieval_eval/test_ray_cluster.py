"""A Ray that does not come up, or is not there, is one line."""

import pytest
import ray

from allpairs.errors import UserError
from retrieval_eval.ray_cluster import cluster


@pytest.mark.parametrize(
    ("address", "raised", "said"),
    [
        ("local", Exception("The current node timed out during startup. This could\nmany lines"),
         r"Ray did not start on this machine \(The current node timed out during startup\. This could\); "
         r"try again when it is less busy\. Its log files lie in /tmp/ray/session_latest/logs"),
        ("10.0.0.1:6379", ConnectionError("Could not connect\nmany lines"),
         r"RAY_ADDRESS=10\.0\.0\.1:6379: no Ray cluster answers there \(Could not connect\); .*doctor` looks closer"),
        ("10.0.0.1:6379", TimeoutError(), r"RAY_ADDRESS=.* \(TimeoutError\)"),
    ],
)  # fmt: skip
def test_a_ray_that_does_not_come_up_is_one_line(monkeypatch, address, raised, said) -> None:
    def start(**settings):
        assert settings["address"] == address
        raise raised

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", start)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(UserError, match=rf"^{said}") as told, cluster(1):
        raise AssertionError("nothing to be connected to")
    assert "\n" not in str(told.value)
