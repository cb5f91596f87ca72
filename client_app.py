"""The device's half: config -> own images -> train the surrogate -> reply."""

import time

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.memory import kept_memory
from feddgm_flwr.federation import messages
from feddgm_flwr.federation.device import Device, told_at_home

app = ClientApp()


@app.train()
def train_surrogate(message: Message, context: Context) -> Message:
    """Train the broadcast surrogate on this client's images."""
    began = time.perf_counter()
    device, task = Device.of(context), messages.read_task(message)
    data = device.images("train")
    with told_at_home("train", name_it=True), kept_memory():
        walked = device.client.train(task, data)
    content = messages.reply_content(
        device.client.reply(task, data, walked),
        train_loss=walked.loss,
        seconds=time.perf_counter() - began,
    )
    return Message(content=content, reply_to=message)


@app.evaluate()
def score_surrogate(message: Message, context: Context) -> Message:
    """Score the broadcast surrogate on this client's own test images."""
    device, task = Device.of(context), messages.read_task(message)
    data = device.images("test")
    with told_at_home("score the model", name_it=True):
        score = evaluate(device.surrogate(task), data.images, data.labels)
    return Message(content=messages.evaluation_content(score, len(data)), reply_to=message)


@app.query(messages.WHOAMI)
def whoami(message: Message, context: Context) -> Message:
    """Say which partition this node holds."""
    who = messages.Identity.of(context.node_config)
    return Message(content=messages.identity_content(who), reply_to=message)
