"""Asks every node of a Ray cluster what it has, and whether it shares the folders of a run.

A program of its own, for it is sent to the cluster as text, where this project may not be: it needs Ray alone.
``python node_probe.py JSON`` prints one line of JSON. The argument: ``run`` a folder to write below, ``data`` folders
that hold a manifest.json, ``address`` of the cluster, ``seconds`` a node has to answer.
"""

import hashlib
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any
from uuid import uuid4


def main(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the cluster's resources and, of each node, what is wrong with the folders."""
    import ray
    from ray._raylet import GcsClient  # type: ignore[attr-defined]
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if ":" in asked["address"] and "://" not in asked["address"]:
        # Names a wrong token at once; ray.init tries for twenty seconds, and then gives no reason.
        GcsClient(address=asked["address"])
    ray.init(address=asked["address"], log_to_driver=False, logging_level=logging.ERROR)
    manifests, problem = digests(asked["data"]), None
    try:
        marker = mark(asked["run"])
    except OSError as error:
        marker, problem = None, f"{asked['run']} cannot be written: {error.strerror}"
    look_there = ray.remote(num_cpus=0, max_retries=0)(look)
    alive = [node for node in ray.nodes() if node["Alive"]]
    answers = {}
    for node in alive:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        arguments = str(marker) if marker else None, node["NodeID"], manifests
        answers[node["NodeID"]] = look_there.options(scheduling_strategy=here).remote(*arguments)
    done, _ = ray.wait(list(answers.values()), num_returns=len(answers), timeout=asked["seconds"])
    nodes = []
    for node in alive:
        answer = answers[node["NodeID"]]
        row = {"node": node["NodeManagerAddress"], "resources": node["Resources"], "problems": []}
        nodes.append(row)
        if answer not in done:
            row["problems"] = [f"no answer within {asked['seconds']:g} s"]
            continue
        try:
            row["problems"] = ray.get(answer) + ([problem] if problem else [])
        except ray.exceptions.RayError as error:
            row["problems"] = [str(error).strip().splitlines()[-1]]
            continue
        if marker and not seen(Path(f"{marker}-{node['NodeID']}")):
            row["problems"].append(f"what it writes into {asked['run']} does not arrive on the other nodes")
    if marker:
        for path in [marker, *marker.parent.glob(f"{marker.name}-*")]:
            path.unlink(missing_ok=True)
    return {"version": ray.__version__, "resources": ray.cluster_resources(), "nodes": nodes}


def mark(folder: str | None) -> Path | None:
    """Write a file into `folder`, or where it would be made, and return its path; OSError where that fails."""
    if folder is None:
        return None
    there = Path(folder)
    while not there.exists():
        there = there.parent
    marker = there / f".allpairs-doctor-{uuid4().hex}"
    marker.write_text(marker.name)
    return marker


def digests(folders: list[str]) -> dict[str, str]:
    """Return what the manifest of each folder holds, as a hash, or why it cannot be read."""
    found = {}
    for folder in folders:
        try:
            found[folder] = hashlib.sha256((Path(folder) / "manifest.json").read_bytes()).hexdigest()
        except OSError as error:
            found[folder] = f"cannot be read: {error.strerror}"
    return found


def look(marker: str | None, node: str, manifests: dict[str, str]) -> list[str]:
    """Return what is wrong on the node where this runs; leave a file beside `marker`."""
    problems = []
    if marker is not None:
        folder = str(Path(marker).parent)
        if not seen(Path(marker)):
            problems.append(f"{folder} is not the folder that the other nodes see there")
        try:
            Path(f"{marker}-{node}").write_text(node)
        except OSError as error:
            problems.append(f"{folder} cannot be written: {error.strerror}")
    for folder, here in digests(list(manifests)).items():
        if ":" in here:
            problems.append(f"{folder}/manifest.json {here}")
        elif here != manifests[folder]:
            problems.append(f"{folder} holds other data than on the other nodes")
    return problems


def seen(path: Path, seconds: float = 5.0) -> bool:
    """Whether `path` is there, or appears: network storage may remember for a moment that it was not."""
    deadline = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
        if path.parent.is_dir():
            list(path.parent.iterdir())  # has the storage look again
    return True


if __name__ == "__main__":
    print(json.dumps(main(json.loads(sys.argv[1]))))
