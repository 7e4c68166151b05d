"""The cluster files say what Ray, KubeRay and this checkout understand, and carry no secret."""

import json
import re
import shlex
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from distributed.config import load
from distributed.doctor.packages import read_pins
from tune.runner import DRIVER

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
MANIFESTS = sorted(DEPLOY.rglob("*.yaml"))


def read(name: str) -> Any:
    return yaml.safe_load((DEPLOY / name).read_text())


def pod_templates() -> dict[str, Any]:
    cluster = read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    templates = {"head": cluster["headGroupSpec"]["template"]}
    return templates | {group["groupName"]: group["template"] for group in cluster["workerGroupSpecs"]}


def walk(node: Any, path: str = "") -> list[tuple[str, Any]]:
    """All leaves of a YAML tree with their paths."""
    if isinstance(node, dict):
        return [leaf for key, child in node.items() for leaf in walk(child, f"{path}/{key}")]
    if isinstance(node, list):
        return [leaf for number, child in enumerate(node) for leaf in walk(child, f"{path}/{number}")]
    return [(path, node)]


def assert_entrypoint_runs(command: str) -> None:
    """`python -m MODULE --config FILE key=value ...`: the module exists and the configuration is accepted."""
    words = shlex.split(command)
    assert words[:2] == ["python", "-m"]
    assert find_spec(words[2]) is not None
    config = words[words.index("--config") + 1]
    overrides = [word for word in words[words.index("--config") + 2 :] if "=" in word]
    load(ROOT / config, [override.replace("$PWD", "/x") for override in overrides])


def test_ray_up_accepts_the_cluster_file() -> None:
    validate_config(prepare_config(read("ray-cluster.yaml")))  # fills defaults in, then checks Ray's own schema


def test_ray_up_refuses_a_misspelt_key() -> None:
    cluster = read("ray-cluster.yaml")
    cluster["file_mount"] = cluster.pop("file_mounts")
    with pytest.raises(Exception, match="file_mount"):
        validate_config(prepare_config(cluster))


def test_token_authentication_is_on_everywhere() -> None:
    cluster = read("ray-cluster.yaml")
    assert "--env=RAY_AUTH_MODE=token" in cluster["docker"]["run_options"]
    assert any(target.endswith("/.ray/auth_token") for target in cluster["file_mounts"])
    job = read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]
    assert job["authOptions"] == {"mode": "token"}


def test_rayjob_runs_a_command_of_this_checkout() -> None:
    spec = read("kuberay/rayjob.yaml")["spec"]
    assert_entrypoint_runs(spec["entrypoint"])
    assert shlex.split(spec["entrypoint"])[-2:] == ["--resume", "auto"]  # or a retry would find its run taken
    assert spec["backoffLimit"] > 0
    assert yaml.safe_load(spec["runtimeEnvYAML"])["env_vars"] == read("runtime-env.yaml")["env_vars"]


def test_rayjob_workers_fit_its_pods() -> None:
    spec = read("kuberay/rayjob.yaml")["spec"]
    overrides = dict(word.split("=", 1) for word in spec["entrypoint"].split() if "=" in word)
    (group,) = spec["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    workers = int(overrides["cluster.workers"])
    assert workers <= group["replicas"] * int(limits["nvidia.com/gpu"])
    assert int(overrides["cluster.cpus_per_worker"]) <= int(limits["cpu"])


@pytest.mark.parametrize("pod", ["head", "gpu"])
def test_every_pod_sees_the_shared_storage_as_one_user(pod: str) -> None:
    spec = pod_templates()[pod]["spec"]
    claims = {volume["name"]: volume.get("persistentVolumeClaim", {}).get("claimName") for volume in spec["volumes"]}
    mounts = {mount["mountPath"]: claims[mount["name"]] for mount in spec["containers"][0]["volumeMounts"]}
    assert mounts["/shared"] == read("kuberay/storage.yaml")["metadata"]["name"]
    assert spec["securityContext"]["runAsUser"] == 1000
    assert "--uid 1000" in (DEPLOY / "Dockerfile").read_text()


def test_heads_offer_drivers_for_searches() -> None:
    start = next(command for command in read("ray-cluster.yaml")["head_start_ray_commands"] if "ray start" in command)
    words = shlex.split(start)
    resources = next(word.removeprefix("--resources=") for word in words if word.startswith("--resources="))
    head = read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["headGroupSpec"]["rayStartParams"]
    # KubeRay writes the parameter into a shell line as it stands, so it brings its own quotes.
    (quoted,) = shlex.split(head["resources"])
    assert json.loads(resources) == json.loads(quoted) == {DRIVER: 8}


def test_one_image_everywhere() -> None:
    images = {template["spec"]["containers"][0]["image"] for template in pod_templates().values()}
    images.add(read("ray-cluster.yaml")["docker"]["image"])
    version = re.search(r'^version = "(.+)"', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert version is not None
    assert images == {f"allpairs:{version[1]}"}


def test_ray_version_is_the_tested_one() -> None:
    pins = read_pins((ROOT / "constraints.txt").read_text())
    assert read("kuberay/rayjob.yaml")["spec"]["rayClusterSpec"]["rayVersion"] == pins["ray"]


def test_runtime_environment_is_one_ray_accepts() -> None:
    environment = RuntimeEnv(**read("runtime-env.yaml"))
    assert environment.env_vars()
    assert "pip" not in environment  # packages belong to the image


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_no_manifest_carries_a_secret(path: Path) -> None:
    for document in yaml.safe_load_all(path.read_text()):
        for where, value in walk(document):
            text = str(value)
            assert not re.search(r"[A-Za-z0-9+/_-]{32,}", text), f"{where} looks like a key"
            assert not re.search(r"-----BEGIN|AKIA|ghp_|hf_|://[^/\s]+:[^/\s]+@", text), f"{where} looks like a key"


def test_no_setting_is_a_secret_or_read_from_the_submitter() -> None:
    settings = dict(read("runtime-env.yaml")["env_vars"])
    for template in pod_templates().values():
        for variable in template["spec"]["containers"][0].get("env", []):
            assert ("value" in variable) != ("valueFrom" in variable)
            if "value" in variable:
                settings[variable["name"]] = variable["value"]
    for name, value in settings.items():
        assert not re.search(r"KEY|TOKEN(?!IZERS)|SECRET|PASSWORD|CREDENTIAL", name)
        assert "$" not in value, "Ray would expand it"


def test_wandb_key_comes_from_a_secret() -> None:
    (variable,) = pod_templates()["gpu"]["spec"]["containers"][0]["env"]
    assert variable["name"] == "WANDB_API_KEY"
    assert set(variable["valueFrom"]) == {"secretKeyRef"}


def test_commands_of_the_readme_exist() -> None:
    text = (DEPLOY / "README.md").read_text().replace("\\\n", " ")
    submitted = re.findall(r"^(?:ray job submit|python -m deploy.submit) .*? -- +(.+)$", text, re.MULTILINE)
    assert len(submitted) == 2
    submitted += [
        f"python -m {words}" for words in re.findall(r"deploy/slurm.sh (.+ --config .+)$", text, re.MULTILINE)
    ]
    assert len(submitted) == 3
    for command in submitted:
        assert_entrypoint_runs(command)
    for name in re.findall(r"deploy/[\w./-]+", text):
        assert (ROOT / name).exists(), name
    for module in re.findall(r"python -m ([\w.]+)", text):
        assert find_spec(module) is not None, module
