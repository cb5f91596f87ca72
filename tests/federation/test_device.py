"""Laws of a device: its own images, the method's rule, and no memory between two rounds."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import Context, RecordDict
from torch import nn

from feddgm_flwr.core.local import Task
from feddgm_flwr.core.models import build_surrogate
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.state import Extra
from feddgm_flwr.core.training import Rule
from feddgm_flwr.federation.device import Device
from feddgm_flwr.federation.facts import facts
from feddgm_flwr.federation.machine import device_of
from feddgm_flwr.methods.halves import ClientHalf

FAST = {
    "data.name": "digits",
    "data.partition": "iid",
    "client.epochs": 1,
    "client.batch-size": 200,
    "surrogate.depth": 2,
    "surrogate.width": 8,
}
HERE = {"partition-id": 1, "num-partitions": 3}


def device(node=HERE, **said):
    config = FAST | {k.replace("__", ".").replace("_", "-"): v for k, v in said.items()}
    context = Context(
        run_id=1, node_id=9, node_config=dict(node), state=RecordDict(), run_config=config
    )
    return Device.of(context)


def task(of, server_round=1, extra=None):
    model = build_surrogate(of.config.surrogate, of.client.spec)
    params = {k: torch.full_like(v, 0.01) for k, v in params_of(model).items()}
    return Task(params, server_round, extra or Extra())


def trained(of, given):
    return of.client.train(given, of.images("train"))


def under(of, half):
    """Return the device under a method whose client half is ``half``."""
    client = replace(of.client)
    vars(client)["half"] = half
    return replace(of, client=client)


def same(a, b):
    return all(torch.equal(a.params[k], b.params[k]) for k in a.params)


def test_a_device_is_read_from_its_context():
    of = device(client__device="cpu", method="scaffold")
    assert (of.who.partition_id, of.who.num_partitions) == (1, 3)
    assert of.client.device == torch.device("cpu")
    assert of.client.spec.num_classes == 10
    assert of.config.method == "scaffold"


def test_a_device_that_cannot_compile_says_so_where_it_is_asked_to(monkeypatch):
    monkeypatch.setenv("CXX", "none")
    assert device(client__device="cpu")
    with pytest.raises(ValueError, match=r"client.compile = true needs a C.. compiler"):
        device(client__device="cpu", client__compile=True)


@pytest.mark.parametrize("node", [{}, {"partition-id": 3, "num-partitions": 3}])
def test_a_device_without_a_sound_identity_says_so(node):
    with pytest.raises(ValueError, match="node-config"):
        device(node)


def test_parts_are_apart_and_make_up_the_set():
    parts = [device({"partition-id": i, "num-partitions": 3}).images("train") for i in range(3)]
    seen = [tuple(image.flatten().tolist()) for part in parts for image in part.images]
    assert len(seen) == sum(map(len, parts)) > 1000
    assert [len(p) for p in parts] == sorted((len(p) for p in parts), reverse=True)
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_device_may_have_a_folder_of_its_own(tmp_path):
    file = tmp_path / "own.npz"
    images = np.zeros((6, 16, 16), np.uint8)
    np.savez(file, train_images=images, train_labels=np.arange(6))
    of = device({"partition-id": 8, "data-dir": str(file)})
    assert of.who.num_partitions == 0
    assert of.images("train").labels.tolist() == list(range(6))


def test_training_depends_on_the_task_and_the_round_alone():
    of = device(client__batch_size=32)
    first = trained(of, task(of))
    assert same(first, trained(device(client__batch_size=32), task(of)))
    assert not same(first, trained(of, task(of, server_round=2)))
    assert first.steps == -(-len(of.images("train")) // 32)


def test_training_follows_the_methods_rule_given_what_was_sent():
    def rule(given, data):
        def adjust(parameters):
            for p in parameters:
                p.grad.fill_(given.extra.numbers["pull"])

        return Rule(adjust)

    of = under(device(client__lr=0.5), ClientHalf(rule=rule))
    given = task(of, extra=Extra(numbers={"pull": 0.25}))
    walked = trained(of, given)
    for name, value in walked.params.items():
        torch.testing.assert_close(value, given.params[name] - 0.125 * walked.steps)


def test_a_reply_holds_what_was_asked_for_and_no_more():
    of = device()
    data = of.images("train")
    walked = trained(of, task(of))
    update = of.client.reply(task(of), data, walked)
    assert (update.partition_id, update.num_examples) == (1, len(data))
    assert (update.label_counts, update.extra) == (None, Extra())


def test_label_counts_and_the_methods_own_are_sent_where_asked():
    of = device(client__share_label_counts=True, client__batch_size=64)
    of = under(of, ClientHalf(up=lambda t, w, data: Extra(numbers={"steps": w.steps})))
    data = of.images("train")
    walked = trained(of, task(of))
    update = of.client.reply(task(of), data, walked)
    assert len(update.label_counts) == 10
    assert sum(update.label_counts) == len(data)
    assert update.extra.numbers == {"steps": walked.steps}


def test_the_surrogate_is_the_one_that_was_sent():
    of = device()
    given = task(of)
    model = of.surrogate(given)
    assert isinstance(model, nn.Module)
    assert all(torch.equal(p, given.params[k]) for k, p in params_of(model).items())


@pytest.mark.parametrize("name", ["abacus", "cuda:99", "cuda:x", "cuda:-1"])
def test_a_machine_without_such_a_device_says_so(name):
    with pytest.raises(ValueError, match=f"client.device must be auto, cpu, .* got '{name}'"):
        device_of("client.device", name)


def test_the_facts_of_a_machine_are_plain_values():
    told = facts(torch.device("cpu"))
    assert told["device"] == "cpu"
    assert told["cpus"] >= 1
    assert all(isinstance(v, str | int) for v in told.values())
