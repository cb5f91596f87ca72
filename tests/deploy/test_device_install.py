"""What is installed on a device is all that it needs, and the server's half is not in it."""

import importlib.metadata
import json
import re
import subprocess
import sys
import tomllib

import pytest
from kit import ROOT
from packaging.requirements import Requirement

SERVERS = {
    *("diffusers", "matplotlib", "mlxtend", "ray", "scikit-learn", "scipy", "torchvision"),
    *("safetensors", "transformers", "pandas"),
}

AT_WORK = """
import json, sys
from importlib.machinery import PathFinder
from pathlib import Path

class Installed:
    find_distributions = staticmethod(PathFinder.find_distributions)

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in absent:
            return None
        found = (finder.find_spec(name, path, target) for finder in finders)
        return next((spec for spec in found if spec is not None), None)

folder, absent = Path(sys.argv[1]), set(json.loads(sys.argv[2]))
finders, sys.meta_path[:] = [*sys.meta_path], [Installed()]

import numpy as np
from PIL import Image
from flwr.app import Context, RecordDict

import client_app
from feddgm_flwr import methods
from feddgm_flwr.data import check
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.models import build_surrogate
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.state import Extra
from feddgm_flwr.federation.device import Device
from feddgm_flwr.methods.halves import method_of

images, labels = np.zeros((4, 16, 16), np.uint8), np.arange(4) % 2
np.savez(folder / "own.npz", train_images=images, train_labels=labels)
for part in ("train", "test"):
    for label in "ab":
        place = folder / "pictures" / part / label
        place.mkdir(parents=True)
        for i in range(2):
            Image.fromarray(images[0]).save(place / f"{i}.png")

own = {"data.class-names": "a,b", "data.channels": 1, "data.image-size": 16, "client.epochs": 1}
own["client.augment"] = "color_crop_rotate"
for kind, data in (("npz", folder / "own.npz"), ("folder", folder / "pictures")):
    config = {"data.name": kind, "data.root": str(data), **own}
    node = {"partition-id": 0, "num-partitions": 0, "data-dir": str(data)}
    of = Device.of(Context(1, 9, node, RecordDict(), config))
    model = build_surrogate(of.config.surrogate, of.client.spec)
    trained = of.client.train(Task(params_of(model), 1, Extra()), of.images("train"))
    assert trained.steps > 0
for name in methods.names():
    method_of(name).client(RunConfig(method=name))

try:
    import server_app
except ModuleNotFoundError as error:
    print(error)
"""
"""A device without what is ``absent``: it trains on a file and a folder of its own.

It is no server, and says what it would need to be one.
"""


def named(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def declared():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def closure(requirements):
    """Return the names of all that these bring, as installed here."""
    todo, seen = [Requirement(r) for r in requirements], set()
    while todo:
        requirement = todo.pop()
        key = (named(requirement.name), frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        extras = [{"extra": extra} for extra in requirement.extras or {""}]
        for text in importlib.metadata.requires(requirement.name) or []:
            further = Requirement(text)
            marker = further.marker
            if marker is None or any(marker.evaluate(extra) for extra in extras):
                todo.append(further)
    return {name for name, _ in seen}


@pytest.fixture(scope="module")
def on_a_device():
    return closure(declared()["dependencies"])


def test_a_device_installs_none_of_the_servers_half(on_a_device):
    assert {"flwr", "torch", "numpy", "pillow"} <= on_a_device
    assert not on_a_device & SERVERS


def test_a_server_installs_all_of_it():
    extra = closure(declared()["optional-dependencies"]["server"])
    assert SERVERS - {"transformers"} <= extra


@pytest.mark.slow
def test_a_device_works_where_nothing_else_is_installed(on_a_device, tmp_path):
    owners = importlib.metadata.packages_distributions()
    absent = [m for m, of in owners.items() if not {named(n) for n in of} & on_a_device]
    absent = sorted({*absent} - {"client_app", "server_app", "feddgm_flwr", "feddgm_priors"})
    assert {"torchvision", "ray", "diffusers", "matplotlib", "sklearn"} <= {*absent}
    command = [sys.executable, "-c", AT_WORK, str(tmp_path), json.dumps(absent)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "at least safetensors is not installed; run pip install" in ended.stdout
    assert "pip install '.[server]'" in ended.stdout
