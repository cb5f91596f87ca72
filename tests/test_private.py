"""Laws of private training: what a step adds, what it spends, and that nothing goes round it."""

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import toy
from inprocess_run import power_cut, run, spoil
from torch.nn.functional import cross_entropy

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core import private
from feddgm_flwr.core.accounting import Account, epsilon, epsilon_of
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.params import load_params, params_of
from feddgm_flwr.core.private import PrivacyConfig, PrivateWalk, clipped_gradients, poisson_sample
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import PLAIN, TrainConfig
from feddgm_flwr.events import from_line, to_line
from feddgm_flwr.federation import ledger, saving
from feddgm_flwr.federation.ledger import Ledger
from feddgm_flwr.methods.client import Client
from feddgm_flwr.monitoring.events import sentence

CPU = torch.device("cpu")
NOISE = {"privacy__noise_multiplier": 2.0, "privacy__delta": 1e-3}


def private_walk(server, data, *, seed=0, **said):
    """Return a client's private walk whose secret is known."""
    privacy = PrivacyConfig(**{"noise_multiplier": 1.0, **said})
    walker = PrivateWalk(privacy, secret=lambda: np.random.default_rng(seed))
    state, _ = toy.federation(server)
    return state, walker(
        server.tools.learners.surrogate.module,
        data,
        Task(state.surrogate, 1),
        server.config.client,
        PLAIN,
        rng=derive(0, "unused"),
        device=CPU,
    )


# The maths of a step.


def test_an_images_gradient_is_cut_to_the_norm_and_a_short_one_stays():
    server = toy.server()
    model = server.tools.learners.surrogate.module
    state, _ = toy.federation(server)
    load_params(model, state.surrogate)
    data = toy.images([0, 1, 2, 0, 1] * 8)

    def own(image, label):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters()}

    each = [own(x, y) for x, y in zip(data.images, data.labels, strict=True)]
    norms = [math.sqrt(sum(float(g.square().sum()) for g in e.values())) for e in each]
    clip = sorted(norms)[len(norms) // 2]
    summed = clipped_gradients(model, clip)(data.images, data.labels)
    for name in summed:
        expected = sum(e[name] * min(1, clip / n) for e, n in zip(each, norms, strict=True))
        torch.testing.assert_close(summed[name], expected, rtol=1e-3, atol=1e-5)


def test_one_image_moves_the_sum_by_the_norm_at_most():
    server = toy.server()
    model = server.tools.learners.surrogate.module
    gradients = clipped_gradients(model, 0.01)
    data = toy.images([0, 1, 2] * 5)
    whole = gradients(data.images, data.labels)
    without = gradients(data.images[1:], data.labels[1:])
    moved = math.sqrt(sum(float((whole[k] - without[k]).square().sum()) for k in whole))
    assert 0.0099 < moved <= 0.0100001


@pytest.mark.parametrize("augment", ["", "flip_crop"])
def test_an_empty_image_in_ones_place_moves_a_step_by_the_norm_over_the_number_at_most(augment):
    """The neighbours of the guarantee: of equal number, so that nothing but one sum differs."""
    server = toy.server(
        client__epochs=1, client__batch_size=24, client__lr=1.0, client__augment=augment
    )
    data = toy.images([0, 1] * 12)
    empty = dataclasses.replace(data, images=data.images.clone())
    empty.images[-1] = math.nan  # its gradient is none, and counts for nothing
    (_, one), (_, other) = (private_walk(server, d, clip_norm=0.01) for d in (data, empty))
    parts = [(one.params[k] - other.params[k]).double().square().sum() for k in one.params]
    assert 0.99 < float(sum(parts)) ** 0.5 / (0.01 / 24) < 1.01


def test_a_gradient_that_overflows_counts_for_nothing():
    spoilt = {"w": torch.tensor([[3.0, 4.0], [math.inf, 0.0], [math.nan, 1.0]])}
    assert private.clip_each(spoilt, clip_norm=1.0)["w"].tolist() == pytest.approx([0.6, 0.8])


def test_noise_has_the_deviation_that_was_asked_for():
    """One step of all images at a rate of 1: theta - lr (sum + z C N(0, 1)) / n."""
    server = toy.server(client__epochs=1, client__batch_size=24, client__lr=1.0)
    data = toy.images([0, 1] * 12)
    quiet_end, loud_end = (
        private_walk(server, data, noise_multiplier=z, clip_norm=0.5)[1].params for z in (1e-9, 3.0)
    )
    noise = torch.cat([(loud_end[k] - quiet_end[k]).flatten() for k in quiet_end])
    assert len(noise) > 500
    assert float(noise.std()) == pytest.approx(3.0 * 0.5 / 24, rel=0.1)
    assert abs(float(noise.mean())) < 4 * 3.0 * 0.5 / 24 / math.sqrt(len(noise))


def test_without_noise_and_bounds_it_is_sgd():
    server = toy.server(client__epochs=3, client__batch_size=24)
    data = toy.images([0, 1] * 12)
    state, walked = private_walk(server, data, noise_multiplier=1e-9, clip_norm=1e6)
    model = server.tools.learners.surrogate.module
    load_params(model, state.surrogate)
    for _ in range(3):  # a batch is all images, whatever their order
        model.zero_grad()
        cross_entropy(model(data.images), data.labels).backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= server.config.client.lr * p.grad
    for name, p in params_of(model).items():
        torch.testing.assert_close(walked.params[name], p, rtol=1e-3, atol=1e-4)


def test_sampling_is_poisson():
    rng = np.random.default_rng(0)
    sizes = torch.tensor([float(len(poisson_sample(200, 0.1, rng=rng))) for _ in range(400)])
    assert float(sizes.mean()) == pytest.approx(20, abs=1)
    assert float(sizes.var()) == pytest.approx(200 * 0.1 * 0.9, rel=0.3)
    assert poisson_sample(5, 1.0, rng=rng).tolist() == [0, 1, 2, 3, 4]


def test_the_noise_is_nobodys_but_the_devices():
    """The run's seed, which the server knows, must not give it away."""
    config = RunConfig.from_run_config({**toy.CONFIG, "privacy.noise-multiplier": 1.0})
    server = toy.server()
    state, _ = toy.federation(server)
    client, data = Client(config, toy.SPEC, 0), toy.images([0, 1] * 12)
    first, second = (client.train(Task(state.surrogate, 1), data) for _ in range(2))
    assert not any(torch.equal(first.params[k], second.params[k]) for k in first.params)
    assert first.loss is None
    assert client.reply(Task(state.surrogate, 1), data, first).label_counts is None


def test_the_secret_is_longer_than_what_can_be_tried():
    """Of 2**32 seeds, which are all that a generator of torch's tells apart, each can be tried."""
    seeds = [private.secret_generator().bit_generator.seed_seq.entropy for _ in range(50)]
    assert len(set(seeds)) == 50
    assert max(seed.bit_length() for seed in seeds) > 120


def test_every_bit_of_the_secret_is_in_the_noise():
    low, high = (np.random.default_rng(3 + (bits << 64)) for bits in (0, 1))
    shape = torch.Size([2, 3])
    first, second = (private.gaussian(shape, rng=rng) for rng in (low, high))
    assert first.shape == shape
    assert first.dtype == torch.float32
    assert not torch.equal(first, second)


# What it spends.


def exact_epsilon(sigma, delta):
    """Return the Gaussian mechanism's epsilon in closed form (Balle & Wang, arXiv 1805.06530)."""

    def phi(x):
        return math.erfc(-x / math.sqrt(2)) / 2

    low, high = 0.0, 100.0
    for _ in range(100):
        eps = (low + high) / 2
        spent = phi(0.5 / sigma - eps * sigma) - math.exp(eps) * phi(-0.5 / sigma - eps * sigma)
        low, high = (eps, high) if spent > delta else (low, eps)
    return high


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 1), (8.0, 16), (30.0, 100)])
def test_epsilon_of_the_bare_gaussian_mechanism_bounds_the_closed_form_closely(sigma, steps):
    """Steps of the whole set are one step of noise sigma / sqrt(steps)."""
    true = exact_epsilon(sigma / math.sqrt(steps), 1e-5)
    assert true <= epsilon(sigma, 1.0, steps, 1e-5) <= 1.15 * true


@pytest.mark.parametrize(
    ("noise", "rate", "steps", "pld"),
    [(1.0, 0.08, 325, 10.0945), (0.8, 0.1, 200, 15.5114), (0.6, 0.08, 325, 30.7866)],
)
def test_epsilon_of_sampled_steps_bounds_the_numerical_one_closely(noise, rate, steps, pld):
    """``pld``: dp-accounting 0.6.0, PLDAccountant over PoissonSampledDpEvent, delta 1e-5."""
    assert pld <= epsilon(noise, rate, steps, 1e-5) <= 1.15 * pld


def test_more_of_anything_spends_more():
    base = epsilon(1.0, 0.1, 100, 1e-5)
    assert base < epsilon(1.0, 0.1, 200, 1e-5)
    assert base < epsilon(1.0, 0.2, 100, 1e-5)
    assert base < epsilon(0.8, 0.1, 100, 1e-5)
    assert base < epsilon(1.0, 0.1, 100, 1e-6)
    assert epsilon(1.0, 0.1, 0, 1e-5) == 0


def test_an_account_counts_rounds_asked_and_the_worst_that_was_said():
    privacy, client = PrivacyConfig(noise_multiplier=1.0), TrainConfig(epochs=2, batch_size=10)
    silent = Account().asked()
    assert epsilon_of(silent, privacy, client) == math.inf
    steady = silent.heard(100).asked()
    assert epsilon_of(steady, privacy, client) == epsilon(1.0, 0.1, 2 * 20, 1e-5)
    varied = steady.heard(50).heard(200)
    assert (varied.fewest, varied.most) == (50, 200)
    assert epsilon_of(varied, privacy, client) == epsilon(1.0, 0.2, 2 * 40, 1e-5)


# A run.


def test_epsilon_is_in_the_log_the_events_and_the_results(tmp_path, caplog):
    caplog.set_level("INFO", logger="feddgm_flwr")
    ended = run(tmp_path / "run", **NOISE)
    told = ended.of("privacy-spent")
    assert [e["round"] for e in told] == [1, 2]
    kept = [r["privacy"] for r in ended.rounds]
    assert [k["epsilon"] for k in kept] == [e["epsilon"] for e in told]
    assert 0 < kept[0]["epsilon"] < kept[1]["epsilon"] == max(kept[1]["clients"].values())
    assert "privacy so far: epsilon at most" in caplog.text
    assert all(e["train_loss"] is None for e in ended.of("client-reply"))


def test_epsilon_is_each_clients_own_steps(tmp_path):
    ended = run(tmp_path / "run", **NOISE, method="fedavg")
    examples = {e["partition_id"]: e["num_examples"] for e in ended.of("client-reply")}
    for client, spent in ended.rounds[1]["privacy"]["clients"].items():
        n = examples[int(client)]
        assert spent == epsilon(2.0, min(1, 32 / n), 2 * -(-n // 32), 1e-3)


def test_only_rounds_in_which_a_client_was_asked_count(tmp_path):
    ended = run(tmp_path / "run", **NOISE, method="fedavg", rounds__fraction_train=0.34, seed=2)
    asked = [e["clients"][0] for e in ended.of("round-start")]
    assert len(set(asked)) == 2
    assert [sorted(map(int, r["privacy"]["clients"])) for r in ended.rounds] == [
        [asked[0]],
        sorted(asked),
    ]


def test_a_resumed_run_counts_the_round_that_was_cut_as_well(tmp_path):
    how = {**NOISE, "method": "fedavg", "num_server_rounds": 3}
    whole = run(tmp_path / "whole", **how).rounds[-1]["privacy"]
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(3), **how)
    resumed = run(tmp_path / "parts", resume=True, **how).rounds[-1]["privacy"]
    longer = run(tmp_path / "longer", **{**how, "num_server_rounds": 4}).rounds[-1]["privacy"]
    assert whole["epsilon"] < resumed["epsilon"] == longer["epsilon"]


def test_a_resumed_run_without_its_ledger_does_not_begin(tmp_path):
    how = {**NOISE, "method": "fedavg", "num_server_rounds": 1}
    ended = run(tmp_path / "run", **how)
    (ended.folder / "privacy.json").unlink()
    with pytest.raises(ValueError, match=r"needs privacy\.json in out-dir"):
        run(tmp_path / "run", resume=True, **{**how, "num_server_rounds": 2})


def test_a_new_run_does_not_overwrite_what_one_that_saved_no_round_spent(tmp_path):
    how = {**NOISE, "method": "fedavg"}
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", tamper=power_cut(1), **how)
    before = (tmp_path / "run" / "privacy.json").read_text()
    with pytest.raises(ValueError, match=r"out-dir must be a new folder under .*privacy\.json"):
        run(tmp_path / "run", **how)
    assert (tmp_path / "run" / "privacy.json").read_text() == before


def test_nobody_is_asked_before_the_disk_takes_the_ledger(tmp_path, monkeypatch):
    refusals = [OSError(28, "No space left on device")] * 3
    plain = ledger.write_atomically

    def write(path, data):
        if refusals:
            raise refusals.pop()
        plain(path, data)

    monkeypatch.setattr(ledger, "write_atomically", write)
    config = RunConfig.from_run_config({"privacy.noise-multiplier": 1.0})
    Ledger(config, tmp_path).asked([0, 2])
    assert not refusals
    assert ledger.read(tmp_path / "privacy.json") == {0: Account(1), 2: Account(1)}
    refusals += [OSError(28, "No space left on device")] * saving.TRIES
    with pytest.raises(saving.UnsavedError, match=r"privacy\.json cannot be written to out-dir"):
        Ledger(dataclasses.replace(config, resume=True, out_dir=str(tmp_path)), tmp_path).asked([1])


def test_a_client_whose_replies_were_all_set_aside_is_unknown_and_not_forgotten(tmp_path):
    def fail(message, reply):
        reply.content["metrics"]["num-examples"] = -5
        return reply

    ended = run(tmp_path / "run", **NOISE, method="fedavg", tamper=spoil(fail))
    assert [r["privacy"]["unknown"] for r in ended.rounds] == [1, 1]
    assert all(r["privacy"]["epsilon"] > 0 for r in ended.rounds)


def test_a_reply_that_is_set_aside_says_how_many_images_it_was_made_of(tmp_path):
    def fewer(message, reply):
        if message.content["config"]["server-round"] == 2:
            reply.content["metrics"]["num-examples"] = 20
            reply.content["metrics"]["partition-id"] = 7
        return reply

    ended = run(tmp_path / "run", **NOISE, method="fedavg", tamper=spoil(fewer))
    assert [e["partition_id"] for e in ended.of("client-rejected")] == [1]
    account = json.loads((tmp_path / "run" / "privacy.json").read_text())["1"]
    assert (account["rounds"], account["fewest"]) == (2, 20)


def test_no_epsilon_is_told_of_clients_of_whom_nothing_is_known(tmp_path):
    config = RunConfig.from_run_config({"privacy.noise-multiplier": 1.0})
    kept = Ledger(config, tmp_path)
    kept.asked([0, 1, 2])
    none = kept.spent(1)
    assert (none.epsilon, none.clients, none.unknown) == (None, {}, 3)
    assert from_line(to_line(none, 0.0)).event == none
    assert sentence(none) == (
        "privacy so far: epsilon is not known, as no client of those asked (3) has said how many "
        "images it has"
    )
    kept.heard([(1, 500)])
    one = kept.spent(1)
    assert (one.epsilon, one.unknown) == (one.clients["1"], 2)
    assert sentence(one).endswith(
        "at delta 1e-05, for one image of the 1 that have said how many they have, and not known "
        "for 2 that have not"
    )


def test_a_run_of_which_no_reply_counts_tells_no_epsilon(tmp_path):
    def fail(message, reply, sender):
        if "num-examples" in reply.content.get("metrics", {}):
            reply.content["metrics"]["num-examples"] = -5
        return reply

    with pytest.raises(RuntimeError, match="no round of 1 made a new model"):
        run(tmp_path / "run", **NOISE, method="fedavg", num_server_rounds=1, tamper=fail)
    (done,) = json.loads((tmp_path / "run" / "result.json").read_text())["rounds"]
    assert done["privacy"] == {"epsilon": None, "delta": 1e-3, "clients": {}, "unknown": 3}


def test_a_delta_that_lets_an_image_out_is_told(tmp_path, caplog):
    run(tmp_path / "run", **{**NOISE, "privacy__delta": 0.5}, method="fedavg", num_server_rounds=1)
    assert "privacy.delta = 0.5 is no less than one over" in caplog.text


def test_the_mean_alone_under_noise_goes_all_the_way(tmp_path):
    ended = run(tmp_path / "run", **NOISE, distill__of="aggregate")
    assert {d["partition_id"] for r in ended.rounds for d in r["distilled"]} == {-1}


# What is refused.


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"privacy.noise-multiplier": -1.0}, "privacy.noise-multiplier must be >= 0, got -1.0;"),
        ({"privacy.clip-norm": 0.0}, "privacy.clip-norm must be greater than 0, got 0.0;"),
        ({"privacy.delta": 1.0}, r"privacy.delta must be in \(0, 1\), got 1.0;"),
        ({"method": "ccvr"}, "= 1 needs a method whose clients train plainly .*, got 'ccvr'"),
        ({"method": "fedprox"}, "needs a method whose clients train plainly"),
        ({"client.share-label-counts": True}, "client.share-label-counts must be false under"),
        ({"client.compile": True}, "client.compile must be false under .*, whose steps"),
        ({"rounds.federated-evaluation": True}, "rounds.federated-evaluation must be false under"),
        ({"client.loss": "balanced-softmax"}, "client.loss must be 'cross-entropy' under"),
    ],
)
def test_what_noise_does_not_cover_is_refused(said, sentence):
    with pytest.raises(ValueError, match=sentence):
        RunConfig.from_run_config({"privacy.noise-multiplier": 1.0, **said})


def test_without_the_accountant_no_private_run_begins(tmp_path, monkeypatch):
    monkeypatch.setattr("feddgm_flwr.core.accounting.find_spec", lambda name: None)
    config = RunConfig.from_run_config({"privacy.noise-multiplier": 1.0})
    with pytest.raises(ValueError, match=r"install '\.\[privacy\]'"):
        Ledger(dataclasses.replace(config), tmp_path)
