"""docs/deploy.md names what is there: scripts, ports, commands of the script of keys, variables."""

import re
import shlex
from pathlib import Path

import pytest
from kit import DEPLOY, ROOT, credentials

GUIDE = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")


def test_every_file_that_the_guide_names_is_there():
    named = {
        *re.findall(r"(?<!/)\b(?:tests/)?deploy/[\w./-]*\w", GUIDE),
        *re.findall(r"\bconf/\w+\.toml", GUIDE),
    }
    named -= {"conf/x.toml"}
    assert {"deploy/server.sh", "deploy/submit.sh", "deploy/compose.yaml"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def commands():
    """Return the arguments of every whole command of credentials.py in the guide."""
    lines = re.findall(r"deploy/credentials\.py ((?:authority|server|node|check) .*)$", GUIDE, re.M)
    return [shlex.split(line.split(" && ")[0], comments=True) for line in lines]


@pytest.mark.parametrize("arguments", commands(), ids=" ".join)
def test_every_command_of_keys_is_one(arguments):
    chosen = credentials().parser().parse_args(arguments)
    assert chosen.command == arguments[0]


def test_the_guide_has_a_command_of_each_kind():
    assert {c[0] for c in commands()} == {"authority", "server", "node", "check"}


def test_the_ports_are_those_of_the_scripts():
    scripts = [(DEPLOY / f"{side}.sh").read_text() for side in ("server", "device")]
    ports = {port for script in scripts for port in re.findall(r":-[\d.]+:(\d+)\}", script)}
    assert ports == {"9091", "9092", "9093", "9094"}
    rows = re.findall(r"^\| \**(\d{4}) (\w+) API", GUIDE, re.M)
    assert dict(rows) == {
        "9091": "ServerAppIo",
        "9092": "Fleet",
        "9093": "Control",
        "9094": "ClientAppIo",
    }


def test_every_variable_is_read_by_something():
    kit = "".join(p.read_text() for p in sorted(Path(DEPLOY).iterdir()) if p.is_file())
    named = set(re.findall(r"\bFEDDGM_\w+", GUIDE))
    assert named
    assert [name for name in sorted(named) if name not in kit] == []


def test_every_drill_has_a_row_and_every_row_a_drill():
    source = (ROOT / "tests" / "deploy" / "test_drills.py").read_text()
    drills = re.findall(r"^def (test_\w+)", source, re.M)
    rows = re.findall(r"\| `\.\.\.(\w+?)(?:\.\.\.)?` \|$", GUIDE, re.M)
    assert len(rows) == len(drills)
    assert all(sum(row in drill for drill in drills) == 1 for row in rows)
