"""Clients of their own opinion: each draws the model half way towards its number."""

import time

import numpy as np
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

app = ClientApp()


def distance(model: np.ndarray, context: Context) -> float:
    """Return how far ``model`` is from this client's number."""
    return float(np.abs(model - float(context.node_config["partition-id"])).mean())


@app.train()
def train(message: Message, context: Context) -> Message:
    """Go half way, or all of it, which takes the longer the higher the number."""
    [model] = message.content["arrays"].to_numpy_ndarrays()
    number = float(context.node_config["partition-id"])
    time.sleep(0.3 * number)
    metrics = MetricRecord({"num-examples": 10, "train-loss": distance(model, context)})
    half = context.run_config.get("half-way", True)
    arrays = ArrayRecord([(model + number) / 2 if half else model * 0 + number])
    return Message(RecordDict({"arrays": arrays, "metrics": metrics}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Say how far off the model is, and call it right within one."""
    [model] = message.content["arrays"].to_numpy_ndarrays()
    loss = distance(model, context)
    metrics = MetricRecord({"num-examples": 10, "loss": loss, "accuracy": float(loss < 1)})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
