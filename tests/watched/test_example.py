"""The example is short, and a real simulation of it is told while it goes on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from small_app import of, told

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "watch_fedavg"

SIMULATION = """
from watched_client import app as client_app
from watched_server import app as server_app
from flwr.simulation import run_simulation

resources = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 3}}
run_simulation(server_app, client_app, num_supernodes=3, backend_config=resources)
"""


def test_the_watched_app_differs_from_a_stock_app_by_two_lines():
    lines = (EXAMPLE / "watched_server.py").read_text(encoding="utf-8").splitlines()
    assert len([line for line in lines if line and '"""' not in line]) <= 12
    assert len([line for line in lines if "Watched" in line]) == 3  # import, use and the docstring
    assert "torch" not in "".join(lines)


def test_its_modules_have_names_of_their_own():
    # Ray's workers look for a module in the folder that the SuperLink was started in, and where
    # this project is installed for work on it, before they look into the app.
    assert not {p.name for p in EXAMPLE.glob("*.py")} & {p.name for p in ROOT.glob("*.py")}


@pytest.mark.slow
def test_a_simulation_of_it_is_told_reply_by_reply(tmp_path):
    path = os.pathsep.join([str(ROOT / "dashboard"), os.environ.get("PYTHONPATH", "")])
    # Modules of one's own are looked for in the folder that Ray's workers start in.
    done = subprocess.run(
        [sys.executable, "-c", SIMULATION],
        cwd=EXAMPLE,
        env={
            **os.environ,
            "HOME": str(tmp_path),
            "PYTHONPATH": path,
            "FLWR_TELEMETRY_ENABLED": "0",
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    [folder] = (tmp_path / "flower-runs").iterdir()
    events = told(folder)
    assert (events[0]["kind"], events[0]["method"]) == ("run-start", "FedAvg")
    assert (events[-1]["kind"], events[-1]["status"]) == ("run-end", "completed")
    assert [e["round"] for e in of(events, "round-end")] == [1, 2, 3]
    spread = []
    for number in (1, 2, 3):
        replies = of(events, "reply-arrived", round=number, phase="clients")
        assert len(replies) == 3
        spread.append(replies[-1]["time"] - replies[0]["time"])
        assert all(e["seconds"] == pytest.approx(e["time"] - asked["time"], abs=1)
                   for e in replies
                   for asked in of(events, "client-asked", round=number, phase="clients",
                                   partition_id=e["partition_id"]))  # fmt: skip
    # They take 0, 0.3 and 0.6 s: told as they come, and not when the last has. In a round on a busy
    # machine the first may wait for a worker as long as the last works.
    assert max(spread) > 0.3
    # Half way towards the mean of 0, 1 and 2 each time: 0.5, 0.75, 0.875; right is who is within 1.
    assert [e["accuracy"]["clients"] for e in of(events, "round-end")] == [
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
        pytest.approx(2 / 3),
    ]
