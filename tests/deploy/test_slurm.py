"""The SLURM script, with stand-ins for SLURM, Ray and Python that write down how they are called."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "deploy/slurm.sh"
NOTE = '#!/bin/bash\necho "$(basename "$0") $*" >> "$CALLS"\n'
STAND_INS = {
    "srun": 'trap "echo step ended >> $CALLS; exit 0" TERM; while :; do sleep 0.05; done',
    "scontrol": 'if [ "$1" = show ]; then printf "n1\\nn2\\nn3\\n"; fi',
    "ray": 'if [ "$1" = get-auth-token ]; then mkdir -p ~/.ray; echo t > ~/.ray/auth_token; fi',
    # Saves for a moment after SIGTERM, as the training command does.
    "python": 'echo "RAY_ADDRESS=$RAY_ADDRESS RAY_AUTH_MODE=$RAY_AUTH_MODE" >> "$CALLS"\n'
    'until [ "$(grep -c ^srun "$CALLS")" -eq "$STEPS" ]; do sleep 0.05; done\n'
    'if [ -z "$RUNS_ON" ]; then exit "$CODE"; fi\n'
    'trap "sleep 0.3; echo saved >> $CALLS; exit 143" TERM; while :; do sleep 0.05; done',
}


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    (tmp_path / "bin").mkdir()
    for name, what in STAND_INS.items():
        (tmp_path / "bin" / name).write_text(f"{NOTE}{what}\n")
        (tmp_path / "bin" / name).chmod(0o755)

    def start(*words: str, nodes: int = 3, **environment: str) -> subprocess.Popen[str]:
        slurm = {
            "SLURM_SUBMIT_DIR": str(tmp_path), "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_JOB_ID": "71234",
            "SLURM_NNODES": str(nodes), "SLURM_CPUS_PER_TASK": "8", "CALLS": str(tmp_path / "calls"), "RUNS_ON": "",
            "STEPS": str(min(nodes, 2)),
            "HOME": str(tmp_path), "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}",
        }  # fmt: skip
        return subprocess.Popen(
            ["bash", SCRIPT, *words], env=slurm | environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )

    return start


def calls(tmp_path: Path) -> list[str]:
    return (tmp_path / "calls").read_text().splitlines() if (tmp_path / "calls").exists() else []


COMMAND = ("distributed.train", "--config", "configs/emoji.yaml", "cluster.workers=3")


def test_a_run_gets_a_ray_of_its_own_over_all_nodes(start, tmp_path: Path) -> None:
    process = start(*COMMAND, CODE="0")
    output = process.communicate(timeout=30)
    assert process.returncode == 0, output
    made = calls(tmp_path)
    heads = [call for call in made if "--head" in call]
    assert heads == [
        "srun --nodes=1 --ntasks=1 --cpus-per-task=8 --nodelist=n1 --overlap "
        'ray start --head --block --port=21234 --num-cpus=8 --resources={"tune_driver": 8}'
    ]
    workers = [call for call in made if call.startswith("srun") and "--head" not in call]
    assert workers == [
        "srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=8 --exclude=n1 --overlap "
        "ray start --address=n1:21234 --block --num-cpus=8"
    ]
    assert "python -m distributed.train --config configs/emoji.yaml cluster.workers=3 --resume auto" in made
    assert "RAY_ADDRESS=n1:21234 RAY_AUTH_MODE=token" in made
    assert made.count("step ended") == 2  # Ray ends with the run
    assert (tmp_path / ".ray/auth_token").stat().st_mode & 0o777 == 0o600
    assert not any("requeue" in call for call in made)


def test_a_failed_run_fails_the_job_and_one_node_needs_no_workers(start, tmp_path: Path) -> None:
    process = start(*COMMAND, nodes=1, CODE="1")
    process.communicate(timeout=30)
    assert process.returncode == 1
    assert sum(call.startswith("srun") for call in calls(tmp_path)) == 1
    assert not any("requeue" in call for call in calls(tmp_path))


@pytest.mark.parametrize(("number", "requeued"), [(signal.SIGUSR1, True), (signal.SIGTERM, False)])
def test_the_end_of_the_time_saves_and_queues_again_and_a_stop_only_saves(start, tmp_path, number, requeued) -> None:
    process = start(*COMMAND, RUNS_ON="yes")
    while not any(call.startswith("RAY_ADDRESS") for call in calls(tmp_path)):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.2)  # the script waits
    process.send_signal(number)
    process.communicate(timeout=30)
    assert process.returncode == 143
    made = calls(tmp_path)
    assert made.index("saved") < made.index("step ended")
    assert ("scontrol requeue 71234" in made) == requeued


def test_without_a_command_the_usage_is_said(start) -> None:
    process = start()
    assert process.communicate(timeout=30)[1].startswith("usage: sbatch deploy/slurm.sh distributed.train --config")
    assert process.returncode == 2


def test_slurm_is_told_to_requeue_and_to_signal_this_script_alone() -> None:
    asked = {line.split()[1] for line in SCRIPT.read_text().splitlines() if line.startswith("#SBATCH ")}
    assert {"--requeue", "--open-mode=append", "--signal=B:USR1@180"} <= asked
