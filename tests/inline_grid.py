"""A grid that runs ClientApps in this process: whole rounds in a test, without Ray or SuperLink.

Replies come back in a chosen order; a node can be made silent, broken or absent.
"""

import random
from copy import deepcopy
from itertools import count

from flwr.app import Context, Error, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.grid.grid import Run  # it has moved since; this name has not


class InlineGrid(Grid):
    """Nodes as (node config, client app) pairs.

    ``tamper(message, reply, partition_id)`` may change a reply or return None to lose it.
    """

    pull_interval = 0.02

    def __init__(self, client_app, run_config, node_configs, *, tamper=None, order=0):
        self.client_app = client_app
        self.tamper = tamper
        self.order = random.Random(order)
        self.asked = []
        self._ids = count(1)
        self._replies = {}
        first = self.order.randrange(10**6)
        self.contexts = {
            first + 7 * i: Context(
                run_id=1,
                node_id=first + 7 * i,
                node_config=dict(node_config),
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for i, node_config in enumerate(node_configs)
        }

    def set_run(self, run):
        raise NotImplementedError

    @property
    def run(self):
        return Run.create_empty(run_id=1)

    def create_message(self, content, message_type, dst_node_id, group_id, ttl=None):
        raise NotImplementedError

    def get_node_ids(self):
        return list(self.contexts)

    def push_messages(self, messages):
        # Replies are pulled in the order of their ids, one by one or all together.
        ids = [f"{next(self._ids):08d}" for _ in messages]
        self.order.shuffle(ids)
        for message_id, message in zip(ids, messages, strict=True):
            message.metadata.__dict__["_message_id"] = message_id
            self.asked.append(message)
            reply = self._answer(message)
            if reply is not None:
                self._replies[message_id] = reply
        return ids

    def pull_messages(self, message_ids):
        there = sorted(set(message_ids) & self._replies.keys())
        return [self._replies.pop(i) for i in there]

    def send_and_receive(self, messages, *, timeout=None):
        return self.pull_messages(self.push_messages(messages))

    def _answer(self, message):
        context = self.contexts[message.metadata.dst_node_id]
        try:
            reply = self.client_app(deepcopy(message), context)
        except Exception as error:  # as Flower's own runtime does
            reply = Message(
                Error(code=2, reason=f"{type(error).__name__}: {error}"),
                reply_to=message,
            )
        if self.tamper is None:
            return reply
        return self.tamper(message, reply, context.node_config.get("partition-id"))


def simulated(count):
    """Return the node configs of a simulation."""
    return [{"partition-id": i, "num-partitions": count} for i in range(count)]
