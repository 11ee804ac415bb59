"""cluster.yaml: what Ray's launcher accepts, closed to strangers, and free of secrets."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "cluster.yaml").read_text(encoding="utf-8")

SECRET_KEY = re.compile(r"(?i)secret|password|credential|private_key|access_key")
SECRET_VALUE = re.compile(
    r"-----BEGIN|(?:AKIA|ASIA)[A-Z0-9]{16}"  # a private key, an AWS access key
    r"|[A-Za-z0-9+]{32,}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"  # a token, a UUID
    r"|RAY_AUTH_TOKEN\s*="
)


@pytest.fixture
def config() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load(TEXT)
    return loaded


@pytest.fixture
def prepared(config: dict[str, Any]) -> dict[str, Any]:
    """The config as `ray up` completes it with the defaults of the provider."""
    complete: dict[str, Any] = prepare_config(config)
    return complete


def keys(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield str(key)
            yield from keys(value)
    elif isinstance(node, list):
        for value in node:
            yield from keys(value)


def test_launcher_accepts_it(prepared: dict[str, Any]) -> None:
    validate_config(prepared)


def test_launcher_refuses_a_misspelt_key(prepared: dict[str, Any]) -> None:
    prepared["available_node_types"]["cpu"]["max_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        validate_config(prepared)


def test_head_runs_no_task(config: dict[str, Any]) -> None:
    head = config["available_node_types"][config["head_node_type"]]
    assert head["resources"] == {"CPU": 0}
    start = [command for command in config["head_start_ray_commands"] if "ray start" in command]
    assert len(start) == 1
    assert "--num-cpus=0" in start[0].split()


def test_two_worker_groups_scale_from_zero(config: dict[str, Any]) -> None:
    workers = {
        name: group
        for name, group in config["available_node_types"].items()
        if name != config["head_node_type"]
    }
    assert set(workers) == {"cpu", "gpu"}
    assert all(0 == group["min_workers"] < group["max_workers"] for group in workers.values())
    assert sum(group["max_workers"] for group in workers.values()) == config["max_workers"]
    assert 0 < config["idle_timeout_minutes"] <= 15
    assert all(0 < group.get("idle_timeout_s", 300) <= 3600 for group in workers.values())


def test_ray_and_python_are_those_of_the_lock(config: dict[str, Any]) -> None:
    assert config["docker"]["image"] == f"rayproject/ray:{ray.__version__}-py311-cpu"
    gpu = config["available_node_types"]["gpu"]["docker"]["worker_image"]
    assert gpu == f"rayproject/ray:{ray.__version__}-py311-gpu"


def test_every_node_installs_the_lock(prepared: dict[str, Any]) -> None:
    mounts = prepared["file_mounts"]
    lock = next(remote for remote, local in mounts.items() if local == "requirements.lock")
    assert (ROOT / mounts[lock]).is_file()
    for commands in ("head_setup_commands", "worker_setup_commands"):
        assert any(
            "pip install" in command and lock in command for command in prepared[commands]
        ), commands
    groups = prepared["available_node_types"].values()
    assert not any("worker_setup_commands" in group for group in groups)


def test_token_auth_is_on_everywhere(config: dict[str, Any]) -> None:
    assert "--env RAY_AUTH_MODE=token" in config["docker"]["run_options"]
    assert config["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    start = " ".join(config["head_start_ray_commands"])
    assert "--dashboard-host=127.0.0.1" in start


def test_there_is_no_secret(config: dict[str, Any]) -> None:
    assert [key for key in keys(config) if SECRET_KEY.search(key)] == []
    assert [match.group() for match in SECRET_VALUE.finditer(TEXT)] == []


@pytest.mark.parametrize(
    "line",
    [
        "RAY_AUTH_TOKEN=abc",
        "token: 0123456789abcdef0123456789abcdef",
        "id: 123e4567-e89b-12d3-a456-426614174000",
        "aws: AKIAABCDEFGHIJKLMNOP",
        "-----BEGIN RSA PRIVATE KEY-----",
    ],
)
def test_a_secret_would_be_seen(line: str) -> None:
    assert SECRET_VALUE.search(line)
