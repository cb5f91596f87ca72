"""Training: equal to a plain torch loop, seeded, and clear about what it cannot do."""

import math
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import ConvNet, SurrogateConfig, build_surrogate, initialise
from feddgm_flwr.core.params import Params, params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import (
    PLAIN,
    Rule,
    TrainConfig,
    epoch_batches,
    steps_of,
    train,
    weighted_loss,
)
from feddgm_flwr.methods.moon import contrastive_loss


def config(**said) -> TrainConfig:
    return TrainConfig(**{"epochs": 3, "lr": 0.1, "batch_size": 4, **said})


def model(dtype=torch.float64) -> nn.Module:
    torch_model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))
    with torch.no_grad():
        for p in torch_model.parameters():
            p.copy_(0.2 * torch.randn(p.shape, generator=derive(0, str(tuple(p.shape)))))
    return torch_model.to(dtype)


def data(n: int = 10, dtype=torch.float64) -> tuple[torch.Tensor, torch.Tensor]:
    rng = derive(0, "data")
    return (
        torch.rand(n, 1, 6, 6, generator=rng, dtype=dtype),
        torch.randint(3, (n,), generator=rng),
    )


def trained(*, images=None, targets=None, **said) -> tuple[Params, float]:
    keywords = {k: said.pop(k) for k in ("weights", "rule") if k in said}
    x, y = data()
    m = model()
    loss = train(
        m,
        x if images is None else images,
        y if targets is None else targets,
        config(**said),
        rng=derive(said.pop("seed", 0), "train"),
        **keywords,
    )
    return params_of(m), loss


def assert_same(a: Params, b: Params) -> None:
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name])


def test_ends_where_a_plain_loop_ends():
    x, y = data()
    m, rng = model(), derive(0, "train")
    sgd = torch.optim.SGD(m.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01, foreach=True)
    for _ in range(3):
        total = 0.0
        for chosen in torch.randperm(10, generator=rng).split(4):
            sgd.zero_grad()
            loss = cross_entropy(m(x[chosen]), y[chosen])
            loss.backward()
            sgd.step()
            total += float(loss.detach()) * len(chosen)
    params, mean = trained(momentum=0.9, weight_decay=0.01)
    assert all(torch.equal(params[name], ends) for name, ends in params_of(m).items())
    assert mean == pytest.approx(total / 10)


def test_same_seed_same_weights():
    augmented = {"augment": "color_crop_cutout_flip_scale_rotate"}
    a, b = trained(**augmented), trained(**augmented)
    assert a[1] == b[1]
    assert all(torch.equal(a[0][k], b[0][k]) for k in a[0])


def test_global_randomness_is_untouched():
    m, (x, y) = model(), data()
    before = torch.get_rng_state()
    train(m, x, y, config(augment="color_crop_flip"), rng=derive(0, "train"))
    assert torch.equal(torch.get_rng_state(), before)


def test_class_indices_and_one_hot_probabilities_teach_the_same():
    _, y = data()
    hard, soft = trained(), trained(targets=one_hot(y, 3).double())
    assert_same(hard[0], soft[0])
    assert hard[1] == pytest.approx(soft[1])


def test_equal_weights_change_nothing():
    assert_same(trained(weights=torch.ones(10).double())[0], trained()[0])


def test_an_image_of_weight_two_is_an_image_twice():
    x, y = data(4)
    whole = {"batch_size": 8, "epochs": 2}
    twice = trained(images=torch.cat([x, x[:2]]), targets=torch.cat([y, y[:2]]), **whole)
    weights = torch.tensor([2.0, 2.0, 1.0, 1.0]).double()
    weighted = trained(images=x, targets=y, weights=weights / weights.mean(), **whole)
    assert_same(twice[0], weighted[0])


def test_weighted_loss_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3.0)]])
    weights = torch.tensor([0.5, 1.5])
    expected = (0.5 * math.log(2.0) + 1.5 * math.log(4.0)) / 2
    loss = weighted_loss(logits, torch.tensor([0, 0]), weights)
    assert float(loss) == pytest.approx(expected)


def test_a_rule_changes_the_gradient_that_the_step_follows():
    x, y = data()
    m, mu, anchor = model(), 0.7, [p + 0.1 for p in params_of(model()).values()]

    def pull(parameters):
        for p, a in zip(parameters, anchor, strict=True):
            p.grad.add_(p.detach() - a, alpha=mu)

    rng, sgd = derive(0, "train"), torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(3):
        for chosen in torch.randperm(10, generator=rng).split(4):
            sgd.zero_grad()
            away = sum(((p - a) ** 2).sum() for p, a in zip(m.parameters(), anchor, strict=True))
            (cross_entropy(m(x[chosen]), y[chosen]) + mu / 2 * away).backward()
            sgd.step()
    assert_same(trained(rule=Rule(pull))[0], params_of(m))


def test_a_rule_is_asked_before_every_step_with_the_parameters_in_order():
    seen, m = [], model()
    x, y = data()

    def look(parameters):
        assert all(p.grad is not None for p in parameters)
        seen.append([p.detach().clone() for p in parameters])

    train(m, x, y, config(), rng=derive(0, "train"), rule=Rule(look))
    assert len(seen) == 9
    for p, before in zip(seen[0], params_of(model()).values(), strict=True):
        assert torch.equal(p, before)
    assert not torch.equal(seen[-1][0], next(iter(m.parameters())))


def test_a_rules_objective_is_what_is_descended_and_what_is_told():
    x, y = data()
    m, rng = model(), derive(0, "train")

    def squares(net, images, targets, weights):
        assert weights is None
        return (net(images) - one_hot(targets, 3)).square().mean()

    sgd = torch.optim.SGD(m.parameters(), lr=0.1)
    for _ in range(3):
        total = 0.0
        for chosen in torch.randperm(10, generator=rng).split(4):
            sgd.zero_grad()
            loss = (m(x[chosen]) - torch.eye(3)[y[chosen]]).square().mean()
            loss.backward()
            sgd.step()
            total += float(loss.detach()) * len(chosen)
    params, mean = trained(rule=Rule(objective=squares))
    assert_same(params, params_of(m))
    assert mean == pytest.approx(total / 10)
    standing = (model()(x) - torch.eye(3)[y]).square().mean().detach()
    assert trained(rule=Rule(objective=squares), epochs=0)[1] == pytest.approx(float(standing))


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs g++ and Python's headers",
)
def test_compiled_training_is_the_plain_one_and_a_second_client_compiles_nothing():
    # In a process of its own, without the type checks that tests put on every function.
    command = [sys.executable, __file__]
    folder = Path(__file__).parent
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-3000:]


def shifted(shift: torch.Tensor) -> Rule:
    def objective(net, images, targets, weights):
        return cross_entropy(net(images) + shift, targets)

    return Rule(objective=objective)


def net(seed: int) -> ConvNet:
    spec = ImageSpec(3, 16, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3)
    made = build_surrogate(SurrogateConfig(depth=2, width=8), spec)
    initialise(made, rng=derive(seed, "weights"))
    return made


def contrastive(i: int) -> Rule:
    received, previous = params_of(net(10 + i)), params_of(net(20 + i))
    loss = contrastive_loss(received, previous, mu=1.0, temperature=0.5)
    return Rule(objective=loss)


def compare_compiled() -> None:
    counted = torch._dynamo.utils.counters["stats"]
    sizes = (22, 20, 27, 5)  # of clients: with a smaller last batch, without, less than a batch
    rules = [[PLAIN] * 4, [shifted(torch.rand(10, generator=derive(i, "s"))) for i in range(4)]]
    rules.append([contrastive(i) for i in range(4)])
    for kind, ruled in enumerate(rules):
        for client, (n, rule) in enumerate(zip(sizes, ruled, strict=True)):
            rng = derive(client, "data")
            images, labels = torch.rand(n, 3, 16, 16, generator=rng), torch.arange(n) % 10
            ends = []
            for compile in (False, True):
                m = net(client)
                how = config(epochs=1, lr=0.05, batch_size=10)
                loss = train(m, images, labels, how, rng=derive(0, "t"), rule=rule, compile=compile)
                ends.append({"loss": torch.tensor(loss), **params_of(m)})
            for name, expected in ends[0].items():
                torch.testing.assert_close(ends[1][name], expected, rtol=1e-5, atol=1e-6)
            assert counted["unique_graphs"] == kind + 1, "one a kind of loss, whoever trains"


@pytest.mark.parametrize("rule", [PLAIN, Rule(lambda parameters: None)])
def test_a_rule_that_changes_nothing_changes_no_bit(rule):
    plain, ruled = trained(), trained(rule=rule)
    assert plain[1] == ruled[1]
    assert all(torch.equal(plain[0][k], ruled[0][k]) for k in plain[0])


def test_no_epochs_make_no_step():
    assert steps_of(10, config(epochs=0)) == 0


def test_no_epochs_leave_the_model_and_tell_its_loss():
    x, y = data()
    m = model()
    loss = train(m, x, y, config(epochs=0), rng=derive(0, "train"))
    assert_same(params_of(m), params_of(model()))
    assert loss == pytest.approx(float(cross_entropy(m(x), y).detach()))


def test_loss_falls():
    first = trained(epochs=0)[1]
    assert trained(epochs=60)[1] < 0.5 * first


def test_every_epoch_is_told():
    told = []
    x, y = data()
    last = train(
        model(), x, y, config(), rng=derive(0, "train"),
        on_epoch=lambda epoch, loss: told.append((epoch, loss)),
    )  # fmt: skip
    assert [epoch for epoch, _ in told] == [1, 2, 3]
    assert told[-1][1] == last


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_raised(bad):
    x, y = data()
    x[3] = bad
    with pytest.raises(FloatingPointError, match=r"epoch 1 at a learning rate of 0\.1"):
        train(model(), x, y, config(), rng=derive(0, "train"))


def test_no_images_are_refused():
    x, y = data()
    with pytest.raises(ValueError, match="at least 1 image, got 0"):
        train(model(), x[:0], y[:0], config(), rng=derive(0, "train"))


@pytest.mark.parametrize(("norm", "sizes"), [(True, [4, 5]), (False, [4, 4, 1])])
def test_a_last_batch_of_one_joins_its_neighbour_under_batch_norm(norm, sizes):
    m = nn.Sequential(nn.BatchNorm2d(1)) if norm else nn.Sequential(nn.Linear(1, 1))
    batches = epoch_batches(9, 4, m, rng=derive(0, "order"))
    assert [len(b) for b in batches] == sizes
    assert sorted(torch.cat(batches).tolist()) == list(range(9))


def test_batch_norm_over_single_values_trains_on_a_remainder_of_one():
    # One value a channel: torch refuses a batch of one here.
    m = nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5), nn.Linear(5, 3))
    x, y = data(9, torch.float32)
    assert math.isfinite(train(m, x, y, config(), rng=derive(0, "train")))


def test_epochs_differ_in_their_order():
    rng = derive(0, "order")
    first, second = (torch.cat(epoch_batches(20, 4, model(), rng=rng)) for _ in range(2))
    assert not torch.equal(first, second)


@pytest.mark.gpu
def test_a_gpu_trains_on_data_that_lie_on_the_cpu():
    x, y = data(dtype=torch.float32)
    here, there = model(torch.float32), model(torch.float32).cuda()
    losses = [train(m, x, y, config(), rng=derive(0, "train")) for m in (here, there)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


if __name__ == "__main__":
    compare_compiled()
