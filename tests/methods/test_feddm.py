"""Laws of FedDM: a client's descent apart in numpy, what travels, which replies count."""

import numpy as np
import pytest
import torch
from inprocess_run import power_cut, round_of, run, same_models, spoil, trained
from torch import nn
from toy import SPEC, images

from feddgm_flwr.core.distribution import first_images, match_distributions, perturbed
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.local import ClientConfig, Task
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ClientUpdate, Extra
from feddgm_flwr.core.training import PLAIN
from feddgm_flwr.methods import feddm

RNG = np.random.default_rng(0)
X, LABELS = RNG.random((6, 4)), np.array([0, 0, 0, 2, 2, 2])
S, OF = RNG.random((3, 4)), np.array([0, 0, 2])
W = RNG.normal(size=(3, 4))
CPU = torch.device("cpu")


def descended(iterations, radius=0.0, **said):
    how = {
        "lr": 0.02,
        "batch_size": 9,
        "augmented": "",
        "rng": derive(0, "x"),
        "device": CPU,
    } | said
    made, loss = match_distributions(
        nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double(),
        ImageSet(torch.tensor(X).reshape(6, 1, 2, 2), torch.tensor(LABELS)),
        {"1.weight": torch.tensor(W)},
        torch.tensor(S).reshape(3, 1, 2, 2),
        torch.tensor(OF),
        iterations=iterations,
        radius=radius,
        **how,
    )
    return made.reshape(3, 4).numpy(), loss


def test_the_descent_on_a_linear_model_is_the_papers():
    made, losses, speed = S.copy(), [], np.zeros((3, 4))
    for _ in range(3):
        slope, loss = np.zeros((3, 4)), 0.0
        for c in (0, 2):
            gap = made[c == OF].mean(0) - X[c == LABELS].mean(0)
            loss += gap @ gap + (W @ gap) @ (W @ gap)
            slope[c == OF] = (2 * gap + 2 * W.T @ W @ gap) / (c == OF).sum()
        speed = 0.5 * speed + slope
        made, losses = made - 0.02 * speed, [*losses, loss]
    found, loss = descended(3)
    np.testing.assert_allclose(found, made, rtol=1e-10)
    np.testing.assert_allclose(loss, losses[-1], rtol=1e-10)
    assert losses[-1] < losses[0]


def test_models_are_drawn_within_the_radius_and_not_beyond_the_noise():
    params = {"a": torch.zeros(30, 40), "b": torch.ones(7)}
    near = perturbed(params, 2.0, rng=derive(0, "x"))
    length = torch.cat([(near[k] - params[k]).flatten() for k in params]).norm()
    torch.testing.assert_close(length, torch.tensor(2.0))
    free = perturbed(params, 1e9, rng=derive(0, "x"))
    assert 0.9 < float(free["a"].std()) < 1.1
    away = descended(1, radius=1.0)[0]
    assert not np.array_equal(away, descended(1)[0])


def test_images_begin_as_noise_or_as_own_ones_of_the_class():
    own = images([0, 0, 2, 2, 2])
    noise, labels = first_images(own, 2, real=False, rng=derive(0, "x"))
    assert labels.tolist() == [0, 0, 2, 2]
    real, _ = first_images(own, 2, real=True, rng=derive(0, "x"))
    for one, c in zip(real, labels, strict=True):
        of_class = own.images[own.labels == c]
        assert (of_class == one).flatten(1).all(1).any()
    assert not (own.images[:, None] == noise[None]).flatten(2).all(2).any()


def made(**said):
    """Return the images that a client of the toy's data makes."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    nn.init.normal_(model[1].weight, generator=derive(0, "weights"))
    nn.init.zeros_(model[1].bias)
    fast = {"images_per_class": 2, "iterations": 3, "image_lr": 0.01, "real_batch": 4}
    walk = feddm.make_images(
        model,
        images([0, 2] * 5),
        Task(params_of(model), 1),
        ClientConfig(),
        PLAIN,
        own=feddm.FedDMConfig(**fast | said),
        rng=derive(0, "client"),
        device=CPU,
    )
    return walk.made.tensors["images"]


@pytest.mark.parametrize(
    "other",
    [{"radius": 0.0}, {"iterations": 2}, {"image_lr": 0.02}, {"real_batch": 2}, {"begin": "real"}],
)
def test_a_clients_images_are_made_by_every_setting_of_its_own(other):
    assert torch.equal(made(), made())
    assert not torch.equal(made(), made(**other))


CONFIG = feddm.FedDMConfig(images_per_class=2)


def sent(n=3, **said):
    return {"images": torch.rand(n, 1, 8, 8), "labels": torch.arange(n) % 3} | said


LIES = {
    "none": (Extra(), "it must send images, labels"),
    "more": (Extra(sent(), {"steps": 1}), "nothing else"),
    "size": (Extra(sent(images=torch.rand(3, 1, 9, 8))), "of shape (n, 1, 8, 8)"),
    "type": (Extra(sent(images=torch.rand(3, 1, 8, 8).double())), "must be float32"),
    "count": (Extra(sent(labels=torch.arange(2))), "must be 3 integers"),
    "class": (Extra(sent(labels=torch.tensor([0, 1, 3]))), "from 0 to 2"),
    "empty": (Extra(sent(0)), "at least 1 image"),
    "greedy": (Extra(sent(labels=torch.zeros(3).long())), "at most 2 images a class"),
    "far": (Extra(sent(images=torch.full((3, 1, 8, 8), 101.0))), "between -100 and 100"),
}


@pytest.mark.parametrize("lie", LIES)
def test_what_cannot_be_believed_is_refused(lie):
    extra, sentence = LIES[lie]
    assert sentence in feddm.wrong(extra, CONFIG, SPEC)
    assert feddm.wrong(Extra(sent()), CONFIG, SPEC) == ""


def test_the_union_is_all_images_in_order():
    as_bytes = sent(images=torch.full((3, 1, 8, 8), 51, dtype=torch.uint8),
                    ranges=torch.tensor([[0.0, 1.0]] * 3))  # fmt: skip
    both = feddm.union(
        [ClientUpdate(i, {}, 9, extra=Extra(e)) for i, e in enumerate((sent(), as_bytes))], SPEC
    )
    assert both.owner.tolist() == [0] * 3 + [1] * 3
    assert both.targets.argmax(1).tolist() == [0, 1, 2] * 2
    torch.testing.assert_close(both.images[3:], torch.full((3, 1, 8, 8), 0.2))


def test_bytes_keep_what_lies_beyond_what_a_screen_can_show():
    made = torch.randn(4, 1, 8, 8) * torch.tensor([0.1, 1.0, 5.0, 0.0])[:, None, None, None]
    as_sent = {**feddm.rounded(made), "labels": torch.tensor([0, 0, 1, 1])}
    assert as_sent["images"].dtype == torch.uint8
    width = (as_sent["ranges"][:, 1] - as_sent["ranges"][:, 0])[:, None, None, None]
    off = (feddm.pixels(Extra(as_sent)) - made).abs()
    assert bool((off <= width * 0.5001 / 255 + 1e-7).all())
    config = feddm.FedDMConfig(images_per_class=2, sent_as="uint8")
    assert feddm.wrong(Extra(as_sent), config, SPEC) == ""
    for name, ranges in (("shape", as_sent["ranges"][:2]), ("type", as_sent["ranges"].double())):
        assert "ranges must be" in feddm.wrong(
            Extra({**as_sent, "ranges": ranges}), config, SPEC
        ), name
    far = torch.tensor([[0.0, 1e30]] * 4)
    assert "between" in feddm.wrong(Extra({**as_sent, "ranges": far}), config, SPEC)


def how(**said):
    fast = {"images_per_class": 1, "iterations": 3, "epochs": 2, "real_batch": 4}
    return {"method": "feddm", **{f"feddm__{k}": v for k, v in (fast | said).items()}}


@pytest.mark.parametrize(("sent_as", "size"), [("float32", 4), ("uint8", 1)])
def test_images_travel_and_no_parameters(sent_as, size, tmp_path):
    replies = {}

    def keep(message, reply, sender):
        if trained(message):
            replies[round_of(message), sender] = reply.content
        return reply

    ended = run(tmp_path / "run", tamper=keep, pictures=True, **how(sent_as=sent_as))
    assert ended.rounds[0]["replies"]["accepted"] == 3
    counts = {}
    for address, content in replies.items():
        assert set(content) == {"arrays", "metrics", "extra"}
        assert len(content["arrays"]) == 0
        tensors = content["extra"].to_torch_state_dict()
        counts[address] = len(tensors["labels"])
    told = {(e["round"], e["partition_id"]): e["num_bytes"] for e in ended.of("client-reply")}
    assert told.keys() == counts.keys()
    for address, count in counts.items():
        # An image, its label and range; what is left is their headers and the metrics.
        assert 0 < told[address] - count * (16 * 16 * size + 8 + 8 * (size == 1)) < 700
    drawn = [(e["round"], e["num_images"]) for e in ended.of("images-drawn")]
    assert drawn == [(r, sum(counts[r, i] for i in range(3))) for r in (1, 2)]


def test_a_lie_on_the_wire_is_set_aside(tmp_path):
    def lie(message, reply):
        reply.content["arrays"] = message.content["arrays"]
        return reply

    ended = run(tmp_path / "run", num_server_rounds=1, tamper=spoil(lie), **how())
    [rejected] = ended.of("client-rejected")
    assert rejected["reason"].startswith("it has other parameters")


def test_the_surrogate_learns_from_the_images_of_all(tmp_path):
    ended = run(
        tmp_path / "run", num_server_rounds=1, **how(iterations=30, epochs=30, images_per_class=3)
    )
    before = ended.result["initial"]["accuracy"]["surrogate"]
    assert ended.rounds[0]["accuracy"]["surrogate"] > before + 0.2


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path):
    whole = run(tmp_path / "whole", **how(begin="real"))
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(2), **how(begin="real"))
    resumed = run(tmp_path / "parts", resume=True, order=3, **how(begin="real"))
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)
