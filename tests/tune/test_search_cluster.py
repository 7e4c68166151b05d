"""The Ray a search starts for itself, beside another one on the same machine, as two people or two shells have it."""

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
import ray
from ray.util.state import list_nodes

from allpairs.errors import UserError
from tune.runner import DRIVER, search_cluster

OTHER = """
import ray
ray.init(address="local", num_cpus=1, include_dashboard=False, logging_level="ERROR")
print(ray.get_runtime_context().gcs_address, flush=True)
input()
"""


@pytest.fixture
def other_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of another Ray that runs on this machine."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # restored afterwards, whatever the search set
    process = subprocess.Popen([sys.executable, "-c", OTHER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip()
    process.communicate("\n", timeout=60)


def test_workers_reach_their_own_dashboard_beside_another_ray(other_ray: str) -> None:
    with search_cluster(cpus=3, drivers=2):
        assert ray.cluster_resources()[DRIVER] == 2
        assert ray.cluster_resources()["CPU"] >= 3
        ours = ray.get_runtime_context().get_node_id()
        # What Ray's own clean-up does for the workers of a trial that was stopped early.
        nodes = ray.get(ray.remote(lambda: [node.node_id for node in list_nodes()]).remote())
        assert nodes == [ours]


def test_cluster_without_drivers_says_how_to_get_them(other_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", other_ray)
    with pytest.raises(UserError, match=r"offers no 'tune_driver'.*--resources"), search_cluster(cpus=1, drivers=1):
        pass
    assert not ray.is_initialized()
    assert os.environ["RAY_ADDRESS"] == other_ray
