"""A ClientApp without a model, and a log's events as Flower's hooks tell them."""

import json

import numpy as np
from flwr.app import ArrayRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from inline_grid import InlineGrid, simulated

from feddgm_flwr.events import Follower, Unknown

app = ClientApp()


@app.train()
def train(message, context):
    [model] = message.content["arrays"].to_numpy_ndarrays()
    number = context.node_config["partition-id"]
    metrics = MetricRecord({"num-examples": 10 * (number + 1), "train-loss": 1.0 / (number + 1)})
    arrays = ArrayRecord([model + number + 1])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message, context):
    metrics = MetricRecord({"num-examples": 10, "loss": 0.5, "accuracy": 0.75})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)


FIRST = [np.zeros(3)]


def grid(clients=3, **kwargs):
    return InlineGrid(app, {}, simulated(clients), **kwargs)


def broken(partition_id, how):
    """Return a tamper by which one client's training fails, or is lost."""

    def tamper(message, reply, sender):
        if message.metadata.message_type != "train" or sender != partition_id:
            return reply
        return None if how == "late" else Message(Error(2, "out of battery"), reply_to=message)

    return tamper


def told(folder):
    """Return the events of a log; each must be one of docs/events.md."""
    follower = Follower(folder / "events.jsonl")
    known = follower.poll()
    assert follower.broken == 0
    assert not any(isinstance(r.event, Unknown) for r in known)
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def of(events, kind, **fields):
    return [e for e in events if e["kind"] == kind and all(e[k] == v for k, v in fields.items())]
