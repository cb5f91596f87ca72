"""Laws of DynaFed: plain averaging first, images that follow the way, then a refined average."""

import pytest
import torch
from inprocess_run import power_cut, run, same_models
from torch import nn
from torch.func import functional_call
from toy import CONFIG, SPEC, federation, quiet, replies, server

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.params import load_params, params_of, weighted_mean
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.core.synthetic import fresh_latents
from feddgm_flwr.methods.dynafed import (
    IMAGES,
    TARGETS,
    DynaFedConfig,
    as_set,
    pixel_bench,
    synthesise,
)
from feddgm_flwr.methods.halves import method_of


@pytest.fixture(scope="module")
def way():
    """Return a toy server and its surrogates of four rounds of plain averaging."""
    on = server()
    state, updates = federation(on)
    path = [state.surrogate]
    for number in range(1, 4):
        path.append(weighted_mean([u.params for u in updates], [u.num_examples for u in updates]))
        updates = replies(on, ServerState(number, path[-1]))
    return on, path


def left(module, start, target, made, lr, steps):
    """Return how much of the way is left after plain SGD on ``made``, squared, of 1."""
    load_params(module, start)
    optimizer = torch.optim.SGD(module.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(module(made.images), made.targets)
        torch.autograd.backward(loss)
        optimizer.step()
    end = params_of(module)
    apart = sum((end[k] - target[k]).square().sum() for k in end)
    return float(apart / sum((start[k] - target[k]).square().sum() for k in end))


def test_training_on_the_images_follows_every_segment(way):
    on, path = way
    own = DynaFedConfig(images_per_class=3, iterations=30, student_steps=5, student_lr=0.1)
    bench = pixel_bench(own, "", on.config, on.tools)
    module = on.tools.learners.surrogate.module

    def rest(latents, s):
        made, lr = as_set(latents), latents.student_lr
        return left(module, path[s], path[s + 2], made, lr, own.student_steps)

    both, again, first, second = (
        synthesise(part, bench, 2, seed=0, server_round=3)
        for part in (path, path, path[:3], path[1:])
    )
    assert torch.equal(again.values, both.values)
    assert as_set(both).images.shape == (9, 1, 8, 8)
    torch.testing.assert_close(as_set(both).targets.sum(1), torch.ones(9))
    for s, made_for_the_other in ((0, second), (1, first)):
        assert rest(both, s) < min(0.8, rest(made_for_the_other, s))


def test_the_first_step_descends_the_unrolled_loss_of_the_drawn_segment(way):
    """Adam's first step is its rate times the sign of the gradient, here autograd's own."""
    on, path = way
    own = DynaFedConfig(images_per_class=1, iterations=1, student_steps=2, pixel_lr=0.25)
    bench = pixel_bench(own, "", on.config, on.tools)
    made = synthesise(path[:3], bench, 2, seed=0, server_round=3)
    module = on.tools.learners.surrogate.module
    at, targets = path[0], (6 * torch.eye(3)).softmax(1)
    rng = derive(0, "latents", 3)
    first = fresh_latents(bench.prior, {0: 1, 1: 1, 2: 1}, 3, bench.config, rng=rng)
    x = first.values.clone().requires_grad_()
    walked = {k: p.clone().requires_grad_() for k, p in at.items()}
    for _ in range(2):
        loss = nn.functional.cross_entropy(functional_call(module, walked, (x,)), targets)
        slopes = torch.autograd.grad(loss, list(walked.values()), create_graph=True)
        walked = {k: p - 0.02 * g for (k, p), g in zip(walked.items(), slopes, strict=True)}
    apart = sum((walked[k] - path[2][k]).square().sum() for k in walked)
    (slope,) = torch.autograd.grad(apart, x)
    sure = slope.abs() > 1e-4 * slope.abs().max()
    step = made.values - first.values
    assert sure.float().mean() > 0.9
    torch.testing.assert_close(step[sure], -0.25 * slope.sign()[sure], atol=1e-3, rtol=1e-3)


def how(**said):
    fast = {"rounds_kept": 2, "span": 1, "images_per_class": 1, "iterations": 3, "student_steps": 2}
    return {"method": "dynafed", **{f"dynafed__{k}": v for k, v in (fast | said).items()}}


def test_it_averages_plainly_then_distils_once_then_refines(tmp_path):
    ours = run(tmp_path / "ours", num_server_rounds=4, pictures=True, **how())
    plain = run(tmp_path / "plain", num_server_rounds=4, method="fedavg")
    for round_, (a, b) in enumerate(zip(ours.rounds, plain.rounds, strict=True), start=1):
        same = abs(a["loss"]["surrogate"] - b["loss"]["surrogate"]) < 1e-5
        assert same is (round_ <= 2)
        assert (a["bytes_up"], a["bytes_down"]) == (b["bytes_up"], b["bytes_down"])
    assert [e["round"] for e in ours.of("phase-start") if e["phase"] == "distill"] == [2]
    assert [e["round"] for e in ours.of("trained")] == [3, 4]
    [drawn] = ours.of("images-drawn")
    assert (drawn["round"], drawn["num_images"]) == (2, 10)


def test_images_stand_in_the_memory_and_the_way_no_longer(way):
    on, _ = way
    said = {k.replace("__", ".").replace("_", "-"): v for k, v in how().items()}
    config = RunConfig.from_run_config({**CONFIG, **said})
    half = method_of("dynafed").server(config, on.tools, quiet)
    state, updates = federation(on)
    one, _ = half.advance(state, updates, 2)
    assert len(one.memory["path"]) == 2
    two, report = half.advance(one, replies(on, one), 2)
    assert set(two.memory) == {IMAGES, TARGETS}
    assert report.fresh.images is two.memory[IMAGES]
    assert two.memory[IMAGES].shape == (3, *(1, SPEC.size, SPEC.size))
    three, _ = half.advance(two, replies(on, two), 2)
    assert three.memory == two.memory


@pytest.mark.parametrize("cut", [2, 3, 4])
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(cut, tmp_path):
    whole = run(tmp_path / "whole", num_server_rounds=4, **how())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", num_server_rounds=4, tamper=power_cut(cut), **how())
    resumed = run(tmp_path / "parts", num_server_rounds=4, resume=True, order=3, **how())
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)


def test_a_segment_longer_than_the_way_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"dynafed\.span must be at most dynafed\.rounds-kept = 2"):
        run(tmp_path / "run", **how(span=3))
