"""The device's half: config -> own images -> train the surrogate -> reply."""

import time

import torch
from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.memory import kept_memory
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate
from feddgm_flwr.core.training import train
from feddgm_flwr.federation import messages
from feddgm_flwr.federation.assembly import (
    device_of,
    label_counts,
    local_images,
    local_model,
)

app = ClientApp()


@app.train()
def train_surrogate(message: Message, context: Context) -> Message:
    """Train the broadcast surrogate on this client's images."""
    began = time.perf_counter()
    config = RunConfig.from_run_config(context.run_config)
    torch.set_num_threads(config.client.threads)
    device = device_of("client.device", config.client.device)
    who = messages.Identity.of(context.node_config)
    broadcast = messages.read_broadcast(message)
    data = local_images(config, who, context.node_config, "train")
    model = local_model(config, broadcast, device)
    with kept_memory():
        loss = train(
            model,
            data.images.to(device),
            data.labels.to(device),
            config.client,
            rng=derive(config.seed, "client", broadcast.server_round, who.partition_id),
            anchor=params_of(model) if broadcast.proximal_mu else None,
            proximal_mu=broadcast.proximal_mu,
        )
    update = ClientUpdate(
        partition_id=who.partition_id,
        params=params_of(model),
        num_examples=len(data),
        label_counts=label_counts(config, data) if config.client.share_label_counts else None,
    )
    content = messages.reply_content(update, train_loss=loss, seconds=time.perf_counter() - began)
    return Message(content=content, reply_to=message)


@app.evaluate()
def score_surrogate(message: Message, context: Context) -> Message:
    """Score the broadcast surrogate on this client's own test images."""
    config = RunConfig.from_run_config(context.run_config)
    torch.set_num_threads(config.client.threads)
    device = device_of("client.device", config.client.device)
    who = messages.Identity.of(context.node_config)
    data = local_images(config, who, context.node_config, "test")
    model = local_model(config, messages.read_broadcast(message), device)
    score = evaluate(model, data.images.to(device), data.labels.to(device))
    return Message(content=messages.evaluation_content(score, len(data)), reply_to=message)


@app.query(messages.WHOAMI)
def whoami(message: Message, context: Context) -> Message:
    """Say which partition this node holds."""
    who = messages.Identity.of(context.node_config)
    return Message(content=messages.identity_content(who), reply_to=message)
