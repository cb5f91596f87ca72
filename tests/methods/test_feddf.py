"""Laws of FedDF: a round computed apart in numpy, and where its images come from."""

import re
import textwrap

import numpy as np
import pytest
import torch
from inprocess_run import power_cut, run, same_models
from PIL import Image
from torch import nn

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.ensemble import Ensemble, divergence
from feddgm_flwr.methods.feddf import FedDFConfig, distil

RNG = np.random.default_rng(0)
X = RNG.random((6, 4))
REPLIES = [RNG.normal(size=(3, 4)) for _ in range(3)]
START = RNG.normal(size=(3, 4))
STEPS, LR = 5, 0.1


def by_hand():
    """Return where the student ends, by this programme on a linear softmax model:

    .. code-block:: python

        w, m, v = START.copy(), 0, 0
        told = softmax(X @ (sum(REPLIES) / 3).T)
        for j in range(STEPS):
            g = (softmax(X @ w.T) - told).T @ X / len(X)
            m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
            rate = LR * (1 + np.cos(np.pi * j / STEPS)) / 2
            ahead = m / (1 - 0.9 ** (j + 1)), v / (1 - 0.999 ** (j + 1))
            w = w - rate * ahead[0] / (np.sqrt(ahead[1]) + 1e-8)
    """

    def softmax(z):
        e = np.exp(z)
        return e / e.sum(1, keepdims=True)

    programme = textwrap.dedent(by_hand.__doc__.split(".. code-block:: python\n")[1])
    found = {**globals(), "softmax": softmax}
    exec(programme, found)
    return found["w"]


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 3, bias=False)).double()


def named(weight):
    return {"1.weight": torch.tensor(weight)}


def taught(**said):
    module = linear()
    ensemble = Ensemble.of(module, [named(w) for w in REPLIES], torch.device("cpu"))
    config = FedDFConfig(**{"steps": STEPS, "lr": LR, "batch_size": 6} | said)
    rng = torch.Generator().manual_seed(0)
    images = torch.tensor(X).reshape(6, 1, 2, 2)
    return distil(module, named(START), ensemble, images, config, rng=rng)["1.weight"]


def test_a_round_is_the_papers():
    np.testing.assert_allclose(taught(), by_hand(), rtol=1e-10, atol=1e-12)
    assert np.abs(by_hand() - START).max() > 0.05


def test_without_steps_the_average_stays_and_batches_change_the_way():
    torch.testing.assert_close(taught(steps=0), torch.tensor(START))
    assert not torch.equal(taught(batch_size=4), taught())


def test_the_divergence_is_the_textbooks():
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.2, 0.2, 0.6])
    logits = (torch.tensor(np.log(x))[None] for x in (p, q))
    torch.testing.assert_close(divergence(*logits)[0], torch.tensor((p * np.log(p / q)).sum()))
    a, b = torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 0.0]])
    half = divergence(a / 2, b / 2)
    torch.testing.assert_close(divergence(a, b, 2.0), 4 * half)


def test_a_weight_is_how_much_a_member_says():
    module = linear()
    all_three = Ensemble(module, tuple(map(named, REPLIES)), torch.tensor([0.5, 0.5, 0.0]).double())
    images = torch.tensor(X).reshape(6, 1, 2, 2)
    expected = X @ ((REPLIES[0] + REPLIES[1]) / 2).T
    np.testing.assert_allclose(all_three(images), expected, rtol=1e-12)


@pytest.fixture
def pictures(tmp_path):
    """Return where the same four pictures lie: in folders of any depth, and in a file."""
    pixels = np.random.default_rng(1).integers(0, 256, (4, 16, 16), np.uint8)
    folder = tmp_path / "public"
    for i, one in enumerate(pixels):
        home = folder / "deep" if i % 2 else folder
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(one).save(home / f"{i}.png")
    np.savez(tmp_path / "public.npz", train_images=pixels[[0, 2, 1, 3]])
    (tmp_path / "nothing").mkdir()
    np.savez(tmp_path / "colour.npz", train_images=np.zeros((2, 16, 16, 3), np.uint8))
    return tmp_path


def how(**said):
    fast = {"method": "feddf", "feddf__count": 20, "feddf__steps": 3, "num_server_rounds": 1}
    return fast | said


def test_images_are_the_priors_or_the_public_ones(pictures, tmp_path):
    runs = {
        name: run(tmp_path / name, **how(feddf__images=where))
        for name, where in {
            "prior": "prior",
            "folder": str(pictures / "public"),
            "npz": str(pictures / "public.npz"),
        }.items()
    }
    plain = run(tmp_path / "plain", method="fedavg", num_server_rounds=1)
    losses = {name: ended.rounds[0]["loss"]["surrogate"] for name, ended in runs.items()}
    losses["plain"] = plain.rounds[0]["loss"]["surrogate"]
    assert losses["folder"] == losses["npz"], "the same four pictures in the same order"
    assert len({*losses.values()}) == 3, losses
    for ended in runs.values():
        assert ended.rounds[0]["bytes_up"] == plain.rounds[0]["bytes_up"]
        assert ended.rounds[0]["bytes_down"] == plain.rounds[0]["bytes_down"]


def test_without_steps_it_is_federated_averaging(tmp_path):
    ours = run(tmp_path / "ours", **how(feddf__steps=0))
    plain = run(tmp_path / "plain", method="fedavg", num_server_rounds=1)
    for name, value in plain.models["surrogate"].items():
        torch.testing.assert_close(ours.models["surrogate"][name], value)


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("missing", "feddf.images must exist"),
        ("nothing", "feddf.images must hold at least 1 picture"),
        ("colour.npz", "must be uint8 of shape (n, side, side[, 1])"),
    ],
)
def test_wrong_pictures_end_the_run_at_once(name, sentence, pictures, tmp_path):
    with pytest.raises(ValueError, match=re.escape(sentence)):
        run(tmp_path / "run", **how(feddf__images=str(pictures / name)))


def test_a_relative_path_is_refused():
    with pytest.raises(ValueError, match=r"feddf\.images must be 'prior' or an absolute path"):
        RunConfig.from_run_config({"feddf.images": "pictures"})


def test_a_prior_is_built_only_where_it_is_sampled():
    assert RunConfig.from_run_config({"method": "feddf"}).needs_prior
    assert not RunConfig.from_run_config({"method": "feddf", "feddf.images": "/x"}).needs_prior
    assert not RunConfig.from_run_config({"method": "fedavg"}).needs_prior


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(pictures, tmp_path):
    said = how(feddf__images=str(pictures / "public"), feddf__count=3, num_server_rounds=2)
    whole = run(tmp_path / "whole", **said)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(2), **said)
    resumed = run(tmp_path / "parts", resume=True, order=3, **said)
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)
