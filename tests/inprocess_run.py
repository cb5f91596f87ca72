"""Whole runs in one process: both apps, as Flower would call them, without Flower's runtime."""

import json
import logging
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from flwr.app import Array, Context, Error, Message, RecordDict
from flwr.common.config import flatten_dict
from inline_grid import InlineGrid, simulated
from tiny import SMALL

import client_app
import server_app
from feddgm_flwr.monitoring import plots

ROOT = Path(__file__).resolve().parents[1]
DEFAULTS = flatten_dict(
    tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]
)
FAST = {
    **SMALL,
    "rounds.node-wait-s": 0.05,
    "rounds.timeout-s": 0.1,  # of a reply that was lost; the others are there at once
    # Pictures cost more than a round here, and most tests do not look at them.
    "watch.images": 0,
    "watch.growing": 0,
}


class Ended:
    """What a run left behind."""

    def __init__(self, folder, grid):
        self.folder, self.grid = folder, grid
        self.result = json.loads((folder / "result.json").read_text())
        self.events = events_of(folder)

    @property
    def rounds(self):
        return self.result["rounds"]

    def of(self, kind):
        return [e for e in self.events if e["kind"] == kind]

    def asked_to_train(self):
        """Return the messages that asked clients to train, in order."""
        return [m for m in self.grid.asked if trained(m)]

    @property
    def models(self):
        saved = sorted((self.folder / "models").glob("*.safetensors"))
        return {file.stem: safetensors.torch.load_file(file) for file in saved}

    def numbers(self):
        """Return all that must not depend on when and how fast."""
        keys = ("round", "accuracy", "loss", "bytes_up", "bytes_down", "replies")
        return [{k: r[k] for k in keys} | {"distilled": timeless(r)} for r in self.rounds]


def timeless(done):
    """Return a round's figures of distillation without how long it took."""
    return [{k: v for k, v in d.items() if k != "seconds"} for d in done["distilled"]]


def events_of(folder):
    """Return the events of a run folder, as JSON has them."""
    return [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]


def run(folder, *, clients=3, nodes=None, tamper=None, order=0, pictures=False, **overrides):
    """Run both apps."""
    said = {k.replace("__", ".").replace("_", "-"): v for k, v in overrides.items()}
    drawn = {"watch.images": 50, "watch.growing": 6} if pictures else {}
    config = {**DEFAULTS, **FAST, **drawn, "out-dir": str(folder), **said}
    nodes = simulated(clients) if nodes is None else nodes
    grid = InlineGrid(client_app.app, config, nodes, tamper=tamper, order=order)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=config)
    with pytest.MonkeyPatch.context() as patch:
        if not pictures:
            patch.setattr(plots, "save_figure", lambda figure, path: None)
        server_app.app(grid, context)
    return Ended(folder, grid)


def said(caplog, level=logging.NOTSET):
    """Return the log's lines, each once: pytest listens at loggers that propagate and at others."""
    return [r.getMessage() for r in dict.fromkeys(caplog.records) if r.levelno >= level]


def same_models(a, b):
    return a.keys() == b.keys() and all(
        torch.equal(a[name][key], b[name][key]) for name in a for key in a[name]
    )


def trained(message):
    return message.metadata.message_type == "train"


def round_of(message):
    return message.content["config"]["server-round"]


def power_cut(server_round):
    """Return a tamper that stops the whole run in ``server_round``."""

    def tamper(message, reply, partition_id):
        if trained(message) and round_of(message) == server_round:
            raise KeyboardInterrupt
        return reply

    return tamper


def spoil(spoiler, *, partition_id=1):
    """Return a tamper that lets ``spoiler(message, reply)`` answer for one client's training."""

    def tamper(message, reply, sender):
        return spoiler(message, reply) if trained(message) and sender == partition_id else reply

    return tamper


def break_reply(message, reply, how):
    """Return a client's reply made bad in one way."""
    match how:
        case "error":
            return Message(Error(code=2, reason="out of battery"), reply_to=message)
        case "late":
            return None
        case "impostor":
            reply.content["metrics"]["partition-id"] = 0
        case "count":
            reply.content["metrics"]["num-examples"] = -5
        case "stuck":
            reply.content["arrays"] = message.content["arrays"]
        case "empty":
            reply.content = RecordDict()
        case _:
            break_array(reply.content["arrays"], how)
    return reply


def break_array(arrays, how):
    """Spoil the first of a reply's tensors."""
    name = next(iter(arrays))
    good = arrays.pop(name).numpy()
    bad = {
        "nan": lambda: good * float("nan"),
        "shape": lambda: good.reshape(-1),
        "dtype": lambda: good.astype("float64"),
    }
    if how in bad:
        arrays[name] = Array(bad[how]())
