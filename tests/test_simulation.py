"""The real thing: `flwr run` in simulation, and deployed over gRPC with TLS and node keys."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from nodes import two_nodes

ROOT = Path(__file__).resolve().parents[1]
WAIT_S = 900
"""For a run that takes a minute on an idle machine."""


def deploy(script, folder, *overrides, env=None):
    """Run a script of deploy/ with two clients; return its exit code, output and results."""
    said = [f'out-dir="{folder / "run"}"', *overrides]
    command = ["bash", str(ROOT / "deploy" / script), str(folder / "work"), "2"]
    command += ["-c", str(ROOT / "conf" / "smoke.toml")]
    command += [part for override in said for part in ("-c", override)]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    with subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            output, _ = process.communicate(timeout=WAIT_S)
        except subprocess.TimeoutExpired:
            process.terminate()  # the script stops what it started
            output, _ = process.communicate()
    ended = subprocess.CompletedProcess(command, process.returncode, output)
    result = folder / "run" / "result.json"
    return ended, json.loads(result.read_text()) if result.exists() else None


def told(folder):
    """Return whose replies to training were told when they came, round by round."""
    lines = (folder / "run" / "events.jsonl").read_text().splitlines()
    events = [json.loads(line) for line in lines]
    came = [e for e in events if e["kind"] == "reply-arrived" and e["phase"] == "clients"]
    waits = {e["round"]: e["time"] for e in events
             if e["kind"] == "phase-end" and e["phase"] == "clients"}  # fmt: skip
    assert all(e["time"] < waits[e["round"]] and e["seconds"] > 0 for e in came)
    return sorted((e["round"], e["partition_id"]) for e in came)


def numbers(result):
    return [(r["accuracy"], r["loss"], r["replies"]) for r in result["rounds"]]


def poor_path(folder):
    """Return a PATH without what only Linux has: ``setsid`` and ``timeout``."""
    folder.mkdir()
    for place in os.environ["PATH"].split(os.pathsep)[::-1]:
        for tool in Path(place).iterdir() if Path(place).is_dir() else ():
            if tool.name not in ("setsid", "timeout"):
                (folder / tool.name).unlink(missing_ok=True)
                (folder / tool.name).symlink_to(tool)
    return f"{Path(sys.executable).parent}{os.pathsep}{folder}"


# Nobody answers there; what runs on this machine must not be looked for behind it.
PROXY = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy"), "http://127.0.0.1:9")


@pytest.fixture(scope="module")
def simulated(tmp_path_factory):
    # Each client on a node of its own; the server's distillation joins the same cluster.
    folder = tmp_path_factory.mktemp("simulated")
    env = {"PATH": poor_path(folder / "bin"), "HOME": "/proc/nobody", **PROXY}
    with two_nodes() as address:
        return deploy(
            "simulate.sh",
            folder,
            'distill.engine="ray"',
            env={"RAY_ADDRESS": address, **env},
        )


@pytest.mark.slow
def test_a_simulated_run_completes_and_leaves_its_results(simulated):
    ended, result = simulated
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert [r["round"] for r in result["rounds"]] == [1, 2]
    assert all(r["replies"]["accepted"] == 2 for r in result["rounds"])


@pytest.mark.slow
def test_a_deployment_with_keys_gives_the_numbers_of_the_simulation(simulated, tmp_path):
    engine = 'distill.engine="processes" distill.workers=2'
    ended, result = deploy("local.sh", tmp_path, engine, env=PROXY)
    assert ended.returncode == 0, ended.stdout[-5000:]
    assert numbers(result) == numbers(simulated[1])
    assert told(tmp_path) == [(1, 0), (1, 1), (2, 0), (2, 1)]


@pytest.mark.slow
def test_a_run_with_a_wrong_setting_fails_with_one_sentence(tmp_path):
    ended, result = deploy("simulate.sh", tmp_path, "data.alpha=-1.0")
    assert ended.returncode == 1
    assert "data.alpha must be greater than 0, got -1.0" in ended.stdout
    assert result is None
