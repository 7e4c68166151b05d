"""The doctor against real conditions: rival packages on the path, token files, servers that answer or do not."""

import json
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Thread

import pytest

from distributed.doctor import cluster, node_probe, packages
from distributed.doctor.cluster import check_cluster
from distributed.doctor.examination import examine
from distributed.doctor.finding import Finding, ProbeError, ask
from distributed.doctor.packages import check_faiss, check_packages, check_toolchain, read_pins
from distributed.doctor.services import check_authentication, check_wandb, token_remedy
from tests.distributed.wandb_server import KEY, Server
from tune.runner import DRIVER

ROOT = Path(__file__).resolve().parents[2]
SECRET = "b6d1c2f0a9e84775b1c2"


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A user with an empty home and nothing exported."""
    for name in list(os.environ):
        if name.startswith(("RAY_", "WANDB_", "NETRC")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))


def run_doctor(cwd: Path = ROOT, **environment: str) -> tuple[int, dict, str]:
    done = subprocess.run(
        [sys.executable, "-m", "distributed.doctor", "--json"],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    return done.returncode, json.loads(done.stdout), done.stdout + done.stderr


def rows(report: dict, check: str) -> list[dict]:
    return [row for row in report["findings"] if row["check"] == check]


def rival(folder: Path, name: str) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text("")
    return folder


def test_command_reports_everything_and_prints_no_secret() -> None:
    code, report, text = run_doctor(WANDB_API_KEY=SECRET, RAY_AUTH_TOKEN=SECRET, RAY_AUTH_MODE="token")
    assert SECRET not in text
    assert report["ok"] == (code == 0)
    assert rows(report, "wandb")[0]["found"] == "API key in WANDB_API_KEY"
    assert rows(report, "ray token")[0] | {"remedy": ""} == {
        "check": "ray token",
        "status": "ok",
        "found": "mode token; token in RAY_AUTH_TOKEN",
        "remedy": "",
    }
    assert "torch" in rows(report, "packages")[0]["found"]


def test_package_behind_ours_on_the_path_is_a_warning(tmp_path: Path) -> None:
    _, report, _ = run_doctor(PYTHONPATH=str(rival(tmp_path / "elsewhere", "tune")))
    (row,) = rows(report, "name tune")
    assert row["status"] == "warning"
    assert str(tmp_path / "elsewhere" / "tune") in row["found"]


def test_package_in_front_of_ours_is_a_problem(tmp_path: Path) -> None:
    folder = rival(tmp_path / "project", "tune")
    code, report, _ = run_doctor(cwd=folder, PYTHONPATH=str(ROOT))
    assert rows(report, "name tune")[0]["status"] == "problem"
    assert code == 1
    assert not report["ok"]


def test_folder_without_init_is_no_rival(tmp_path: Path) -> None:
    (tmp_path / "deploy").mkdir()
    _, report, _ = run_doctor(PYTHONPATH=str(tmp_path))
    assert not rows(report, "name deploy")


def write_token(path: Path, mode: int = 0o600, text: str = SECRET) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)
    return path


def test_token_file_of_the_user_is_found(tmp_path: Path) -> None:
    path = write_token(tmp_path / ".ray" / "auth_token")
    assert check_authentication() == Finding("ray token", "ok", f"mode unset; token in {path}")


def test_token_others_can_read_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    with TemporaryDirectory() as folder:  # pytest's own folders are closed to others already
        path = write_token(Path(folder) / "token", mode=0o644)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(path))
        assert check_authentication().status == "ok"
        Path(folder).chmod(0o755)
        finding = check_authentication()
        assert (finding.status, finding.remedy) == ("warning", f"chmod 600 {path}")


@pytest.mark.parametrize("text", [None, "  \n"])
def test_named_token_file_without_token_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text) -> None:
    if text is not None:
        write_token(tmp_path / "token", text=text)
    write_token(tmp_path / ".ray" / "auth_token")  # Ray does not fall back to it, and neither may we
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    assert check_authentication().status == "problem"


def test_token_mode_without_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert check_authentication().status == "ok"  # a local cluster writes its own
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert check_authentication().status == "problem"


def test_disabled_authentication_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert check_authentication().status == "warning"


@pytest.fixture
def dashboard():
    """A server that answers like Ray's dashboard: the version, and only to the right token."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            allowed = self.headers.get("authorization") == f"Bearer {SECRET}"
            self.send_response(200 if allowed else 401)
            self.end_headers()
            self.wfile.write(json.dumps({"ray_version": "1.0.0"}).encode())

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Answer)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_cluster_that_refuses_the_token_is_a_problem(dashboard: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard)
    (finding,) = check_cluster()
    assert finding.status == "problem"
    assert "refuses this token (401)" in finding.found
    assert finding.remedy.startswith("export RAY_AUTH_MODE=token")


def test_cluster_with_another_ray_is_a_warning(dashboard: str) -> None:
    environment = {"RAY_API_SERVER_ADDRESS": dashboard, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": SECRET}
    _, report, text = run_doctor(**environment)
    (row,) = rows(report, "ray cluster")
    assert row["status"] == "warning"
    assert "runs Ray 1.0.0" in row["found"]
    assert SECRET not in text


def test_cluster_address_nobody_answers_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    assert [row.status for row in check_cluster()] == ["problem"]
    monkeypatch.setenv("RAY_ADDRESS", "nonsense")
    assert "is no address" in check_cluster()[0].found


def test_credentials_in_an_address_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", f"http://user:{SECRET}@127.0.0.1:1")
    assert SECRET not in check_cluster()[0].found


def test_a_token_in_the_environment_goes_before_a_file_and_this_is_said(tmp_path: Path, monkeypatch) -> None:
    path = write_token(tmp_path / ".ray" / "auth_token", text="another")
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    assert token_remedy() == f"copy the cluster's token to {path}"
    monkeypatch.setenv("RAY_AUTH_TOKEN", SECRET)
    assert check_authentication().found.endswith(f"token in RAY_AUTH_TOKEN, which goes before the other one in {path}")
    assert token_remedy().endswith(f"set it to the cluster's token, or unset it to use {path}")
    path.write_text(f"{SECRET}\n")
    assert check_authentication().found.endswith("token in RAY_AUTH_TOKEN")


def cluster_of(monkeypatch, dashboard: str, resources: dict, *problems: list[str]) -> None:
    """Let the dashboard's cluster have `resources` and a node per list of problems."""
    nodes = [{"node": f"10.0.0.{n}", "resources": {}, "problems": found} for n, found in enumerate(problems)]
    found = json.dumps({"version": "2", "resources": resources, "nodes": nodes})
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", dashboard)
    monkeypatch.setattr(cluster, "ask_dashboard", lambda where, address: Finding("ray cluster", "ok", where))
    monkeypatch.setattr(cluster, "_ask_by_job", lambda address, asked: found)


def told(config=None) -> list[tuple[str, str, str]]:
    return [(row.check, row.status, row.found) for row in check_cluster(config)[1:]]


def test_a_cluster_s_room_is_told_and_measured_against_the_run(tiny_config, monkeypatch) -> None:
    cluster_of(monkeypatch, "http://head:8265", {"CPU": 4.0, "GPU": 1.0, cluster.TUNE_DRIVER: 8.0}, [], [])
    assert told() == [
        ("ray room", "ok", "2 node(s): 4 CPU, 1 GPU, 8 tune_driver"),
        ("node 10.0.0.0", "ok", "answers"),
        ("node 10.0.0.1", "ok", "answers"),
    ]
    asked = "cluster.workers=9 with cluster."
    assert told(tiny_config(cluster={"workers": 9}))[1:3] == [
        ("ray room", "warning", f"{asked}cpus_per_worker=1 ask for 9 CPU, here are 4: the run would wait"),
        ("ray room", "warning", f"{asked}device=auto ask for 9 GPU, here are 1: the run would compute on CPUs"),
    ]
    assert len(told(tiny_config(train={"global_batch": 99}, cluster={"workers": 6, "min_workers": 1}))) == 3  # enough
    cluster_of(monkeypatch, "http://head:8265", {"CPU": 4.0})
    ((_, status, found),) = told()
    assert (status, found) == ("warning", "0 node(s): 4 CPU, 0 GPU, 0 tune_driver; no search can run")
    assert cluster.TUNE_DRIVER == DRIVER


def test_nodes_that_do_not_share_the_folders_are_problems(tiny_config, monkeypatch) -> None:
    config = tiny_config()
    cluster_of(monkeypatch, "http://head:8265", {"CPU": 4.0, cluster.TUNE_DRIVER: 1.0}, [], ["a", "b"])
    assert told(config)[2:] == [
        ("node 10.0.0.0", "ok", f"run.dir {config.run.dir} written and read; data.train, data.val, data.test read"),
        ("node 10.0.0.1", "problem", "a; b"),
    ]
    relative = tiny_config(run={"dir": "runs"}, data={"root": "data"})
    assert [found[:2] for found in told(relative)] == [("run.dir", "problem"), ("data.root", "problem")]


def test_a_node_s_view_of_the_folders(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/manifest.json").write_text("{}")
    folders = [str(tmp_path / "data"), str(tmp_path / "gone")]
    marker = node_probe.mark(str(tmp_path / "runs/of/mine"))  # is not there yet: one level up, where it would be made
    assert marker is not None
    assert marker.parent == tmp_path
    assert node_probe.look(str(marker), "n1", node_probe.digests(folders[:1])) == []
    assert node_probe.seen(Path(f"{marker}-n1"))
    assert node_probe.look(None, "n1", {folders[0]: "0" * 64, folders[1]: "0" * 64}) == [
        f"{folders[0]} holds other data than on the other nodes",
        f"{folders[1]}/manifest.json cannot be read: No such file or directory",
    ]
    marker.unlink()
    assert not node_probe.seen(marker, seconds=0.1)


def test_keys_without_a_config_are_refused() -> None:
    command = [sys.executable, "-m", "distributed.doctor", "run.dir=/shared"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "give it with --config" in done.stderr


def test_wandb_key_in_netrc(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRET}\n")
    finding = check_wandb()
    assert finding == Finding("wandb", "ok", f"API key in {tmp_path / '.netrc'} (api.wandb.ai)")


def test_wandb_default_netrc_entry_is_no_key(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text(f"default login user password {SECRET}\n")
    assert "no API key" in check_wandb().found


def test_wandb_online_without_key_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    assert check_wandb().status == "problem"


@pytest.mark.parametrize(
    ("answer", "status", "found"),
    [
        (200, "ok", "tracking.wandb=online: the server answers and takes the key in WANDB_API_KEY"),
        (401, "problem", "refuses the API key in WANDB_API_KEY"),
    ],
)
def test_a_run_that_goes_online_has_its_server_asked(tiny_config, monkeypatch, answer, status, found) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    with Server().serving() as server:
        server.status = answer
        monkeypatch.setenv("WANDB_BASE_URL", server.url)
        finding = check_wandb(tiny_config(tracking={"wandb": "online"}))
    assert finding.status == status
    assert found in finding.found
    assert KEY not in str(finding)
    assert check_wandb(tiny_config()).found == "tracking.wandb=disabled: nothing is uploaded"


def install(folder: Path, wheel: str, module: str, code: str = "") -> None:
    """Make `folder` look as if pip had put `wheel`, which brings `module`, there."""
    (folder / module).mkdir(parents=True, exist_ok=True)
    (folder / module / "__init__.py").write_text(code)
    info = folder / f"{wheel.replace('-', '_')}-9.9.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {wheel}\nVersion: 9.9\n")
    (info / "top_level.txt").write_text(f"{module}\n")
    (info / "RECORD").write_text(f"{module}/__init__.py,,\n")


def test_two_faiss_wheels_are_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "faiss-cpu", "faiss")
    install(tmp_path, "faiss-gpu", "faiss")
    monkeypatch.syspath_prepend(str(tmp_path))
    finding = check_faiss()
    assert finding.status == "problem"
    assert "faiss-cpu and faiss-gpu" in finding.found


def test_torchvision_that_does_not_import_is_a_problem(tmp_path: Path) -> None:
    install(tmp_path, "torchvision", "torchvision", "raise RuntimeError('operator torchvision::nms does not exist')")
    _, report, _ = run_doctor(PYTHONPATH=str(tmp_path))
    (row,) = rows(report, "torchvision")
    assert row["status"] == "problem"
    assert "torchvision::nms" in row["found"]
    assert row["remedy"] == "pip uninstall -y torchvision"


def test_environment_too_bare_for_the_doctor_gets_the_one_remedy(tmp_path: Path) -> None:
    install(tmp_path, "cyclopts", "cyclopts", "raise ModuleNotFoundError(\"No module named 'cyclopts'\")")
    command = [sys.executable, "-m", "distributed.doctor"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: No module named 'cyclopts'",
        "remedy: pip install -c constraints.txt -e '.[service,faiss-cpu]'",
    ]


def test_missing_compiler_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler -O2")
    finding = check_toolchain()
    assert finding.status == "warning"
    assert "C++ compiler (no-such-compiler)" in finding.found


def test_other_version_than_the_tested_one_is_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "constraints.txt").write_text("rich==13.0.0\nnumpy==" + version("numpy") + "\n")
    monkeypatch.setattr(packages, "PINS", tmp_path / "constraints.txt")
    findings = {finding.check: finding for finding in check_packages()}
    assert findings["rich"].status == "warning"
    assert findings["rich"].remedy == "pip install rich==13.0.0"
    assert "numpy" not in findings


def test_package_below_the_asked_range_is_a_problem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path, "pydantic", "unused")
    (tmp_path / "pydantic-9.9.dist-info" / "METADATA").write_text(
        "Metadata-Version: 2.1\nName: pydantic\nVersion: 1.0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (finding,) = [finding for finding in check_packages() if finding.check == "pydantic"]
    assert finding.status == "problem"
    assert finding.found.startswith("1.0, the project asks for >=2")


def test_pins_are_read_as_pip_reads_them() -> None:
    text = "# tested\ntorch==2.13.0\nPyYAML == 6.0.3  # parser\nnumpy>=2\nfaiss_cpu==1.15.1; python_version > '3'\n"
    assert read_pins(text) == {"torch": "2.13.0", "pyyaml": "6.0.3", "faiss-cpu": "1.15.1"}


def test_probe_reports_how_it_ended() -> None:
    assert ask("print('noise'); print(7)") == "7"
    with pytest.raises(ProbeError, match="ValueError: no"):
        ask("raise ValueError('no')")
    with pytest.raises(ProbeError, match="signal 6"):
        ask("import os; os.abort()")
    with pytest.raises(ProbeError, match="within 1 s"):
        ask("import time; time.sleep(30)", timeout_s=1)


def test_broken_check_does_not_hide_the_others() -> None:
    def broken() -> Finding:
        raise OSError("disk on fire")

    def sound() -> Finding:
        return Finding("sound", "ok", "well")

    first, second = examine([broken, sound])
    assert (first.check, first.status) == ("broken", "problem")
    assert "disk on fire" in first.found
    assert second.status == "ok"
