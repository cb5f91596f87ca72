"""What the tests of the kit share: its folder, its script of keys, and stand-ins for Flower."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"


def credentials():
    """Return deploy/credentials.py as a module."""
    spec = importlib.util.spec_from_file_location("credentials", DEPLOY / "credentials.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look themselves up there
    spec.loader.exec_module(module)
    return module


def mode(path):
    return path.stat().st_mode & 0o777


def stand_ins(folder):
    """Return a folder of programs that say how they were called, in place of Flower's."""
    folder.mkdir(exist_ok=True)
    said = 'echo "$0" "$@"\numask\npwd\necho "home $FLWR_HOME"\n'
    shell = f"#!/bin/sh\n{said}"
    # Python runs this one (deploy/superlink.py).
    python = f"import subprocess, sys\nsubprocess.run(['sh', '-c', {said!r}, *sys.argv])\n"
    for name, text in {
        "flwr": shell,
        "flower-supernode": shell,
        "flower-superlink": python,
    }.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    if not (folder / "python").exists():
        (folder / "python").symlink_to(sys.executable)
    return folder


def started(script, programs, *arguments, **environment):
    """Run a script on stand-ins; return how it ended."""
    return subprocess.run(
        ["bash", str(DEPLOY / script), *map(str, arguments)],
        env={
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join(sys.path),
            **{name: str(value) for name, value in environment.items()},
        },
        capture_output=True,
        text=True,
        timeout=120,
    )
