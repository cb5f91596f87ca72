"""Golden numerics of the matching gradients, each against its own truth, in float64."""

import sys

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from feddgm_flwr.core.distillation import matching
from feddgm_flwr.core.distillation.matching import endpoint_distance, matching_gradients
from feddgm_flwr.core.distillation.student import AutogradStudent
from feddgm_flwr.core.params import params_of, squared_distance

STEPS = 4


class Problem:
    """A student of two layers, six images of three classes, soft targets."""

    def __init__(self):
        torch.manual_seed(0)
        self.net = nn.Sequential(
            nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(18, 3)
        ).double()
        self.start = params_of(self.net)
        self.target, self.elsewhere = (
            {k: p + 0.1 * torch.randn_like(p) for k, p in self.start.items()} for _ in range(2)
        )
        self.images = torch.randn(6, 1, 3, 3, dtype=torch.float64)
        self.targets = torch.randn(6, 3, dtype=torch.float64).softmax(1)
        self.lr = torch.tensor(0.3, dtype=torch.float64)

    def step_input(self, images, targets, step):
        chosen = torch.tensor([(step + i) % 6 for i in range(4)])  # a minibatch a step
        return images[chosen], targets[chosen]

    def step_loss(self, params, images, targets, step):
        images, targets = self.step_input(images, targets, step)
        return cross_entropy(functional_call(self.net, params, (images,)), targets)

    def unrolled(self, images, targets, lr, *, detached=False):
        """The loss as one autograd graph: obviously right, and slow."""
        params = {k: p.clone().requires_grad_() for k, p in self.start.items()}
        end = params
        for step in range(STEPS):
            at = end
            if detached:
                at = {k: p.detach().requires_grad_() for k, p in end.items()}
            loss = self.step_loss(at, images, targets, step)
            grads = torch.autograd.grad(loss, list(at.values()), create_graph=True)
            end = {k: p - lr * g for (k, p), g in zip(end.items(), grads, strict=True)}
        return endpoint_distance(end, self.start, self.target)

    def ours(self, **kwargs):
        return matching_gradients(
            AutogradStudent(self.net),
            self.step_input,
            self.start,
            self.target,
            self.images,
            self.targets,
            self.lr,
            steps=STEPS,
            **kwargs,
        )


@pytest.fixture
def problem():
    return Problem()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kept_steps", [None, 0, 2])
def test_gradients_equal_autograd_of_their_own_unroll(problem, exact, kept_steps):
    inputs = [t.clone().requires_grad_() for t in (problem.images, problem.targets, problem.lr)]
    loss = problem.unrolled(*inputs, detached=not exact)
    truth = torch.autograd.grad(loss, inputs)
    ours = problem.ours(exact=exact, kept_steps=kept_steps)
    torch.testing.assert_close(ours.loss, loss.detach())
    for mine, theirs in zip((ours.images, ours.targets, ours.lr), truth, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_exact_gradient_agrees_with_finite_differences(problem):
    class Ours(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images, targets, lr):
            problem.images, problem.targets, problem.lr = images, targets, lr
            with torch.enable_grad():
                g = problem.ours(exact=True)
            ctx.save_for_backward(g.images, g.targets, g.lr)
            return g.loss

        @staticmethod
        def backward(ctx, d):
            return tuple(d * g for g in ctx.saved_tensors)

    inputs = [t.clone().requires_grad_() for t in (problem.images, problem.targets, problem.lr)]
    assert torch.autograd.gradcheck(Ours.apply, inputs)


def test_detached_gradient_is_not_the_exact_one(problem):
    exact, detached = problem.ours(exact=True), problem.ours(exact=False)
    assert torch.equal(exact.loss, detached.loss)
    assert (exact.images - detached.images).norm() > 0.01 * exact.images.norm()


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("kept_steps", [0, 1, 3, 100])
def test_bounded_memory_changes_no_bit(problem, exact, kept_steps):
    all_kept, bounded = (problem.ours(exact=exact, kept_steps=k) for k in (None, kept_steps))
    for name in ("loss", "images", "targets", "lr"):
        assert torch.equal(getattr(all_kept, name), getattr(bounded, name))


def test_student_ends_where_torch_sgd_ends(problem):
    optimizer = torch.optim.SGD(problem.net.parameters(), lr=float(problem.lr))
    for step in range(STEPS):
        optimizer.zero_grad()
        params = dict(problem.net.named_parameters())
        problem.step_loss(params, problem.images, problem.targets, step).backward()
        optimizer.step()
    end = params_of(problem.net)
    expected = squared_distance(end, problem.target) / squared_distance(
        problem.start, problem.target
    )
    torch.testing.assert_close(problem.ours(exact=True).loss, expected)


def test_distance_is_one_at_the_start_and_zero_on_the_target(problem):
    assert endpoint_distance(problem.start, problem.start, problem.target) == 1
    on_target = endpoint_distance(problem.target, problem.start, problem.target)
    torch.testing.assert_close(on_target, torch.zeros_like(on_target))


def test_a_client_that_did_not_move_is_refused(problem):
    with pytest.raises(ValueError, match="no trajectory to match"):
        endpoint_distance(problem.start, problem.start, problem.start)


def test_a_distance_may_leave_out_parameters(problem, monkeypatch):
    plain = endpoint_distance

    def of_weights(end, start, target):
        chosen = [name for name in end if name.endswith("weight")]
        return plain(*({k: of[k] for k in chosen} for of in (end, start, target)))

    monkeypatch.setattr(matching, "endpoint_distance", of_weights)
    found = problem.ours(exact=True)
    images = problem.images.clone().requires_grad_()
    monkeypatch.setattr(sys.modules[__name__], "endpoint_distance", of_weights)
    loss = problem.unrolled(images, problem.targets, problem.lr)
    torch.testing.assert_close(found.images, torch.autograd.grad(loss, images)[0])


def test_endpoint_distance_has_the_gradient_written_out_to_the_bit(problem):
    start, target, student = (
        {k: p.float() for k, p in params.items()}
        for params in (problem.start, problem.target, problem.elsewhere)
    )
    leaves = {k: p.requires_grad_() for k, p in student.items()}
    pulled = torch.autograd.grad(endpoint_distance(leaves, start, target), list(leaves.values()))
    scale = 2 / squared_distance(start, target)
    for k, pull in zip(student, pulled, strict=True):
        assert torch.equal(pull, (student[k].detach() - target[k]) * scale)


@pytest.mark.parametrize("exact", [True, False])
def test_a_student_that_does_not_move_is_at_one_and_nan_nowhere(problem, exact):
    problem.targets = torch.zeros_like(problem.targets)  # no loss, so no gradient
    ours = problem.ours(exact=exact)
    assert ours.loss == 1
    for gradient in (ours.images, ours.targets, ours.lr):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("exact", [True, False])
def test_pulled_back_latent_gradient_equals_one_graph_through_the_generator(problem, exact):
    decode = nn.Sequential(nn.Linear(4, 9), nn.Tanh(), nn.Unflatten(1, (1, 3, 3))).double()
    latents = torch.randn(6, 4, dtype=torch.float64, requires_grad=True)
    problem.images = decode(latents)
    loss = problem.unrolled(problem.images, problem.targets, problem.lr, detached=not exact)
    (whole,) = torch.autograd.grad(loss, latents, retain_graph=True)
    (pulled,) = torch.autograd.grad(problem.images, latents, problem.ours(exact=exact).images)
    torch.testing.assert_close(pulled, whole)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("lr", [0.0, 1e-320, 1e-30, -1e-30, 1e-11, -0.3])
def test_the_slope_does_not_need_a_learning_rate(problem, exact, lr):
    problem.lr = torch.tensor(lr, dtype=torch.float64)
    ours = problem.ours(exact=exact)
    leaves = [t.clone().requires_grad_() for t in (problem.images, problem.targets, problem.lr)]
    if exact:
        torch.autograd.backward(problem.unrolled(*leaves))
        expected = [t.grad for t in leaves]
        torch.testing.assert_close([ours.images, ours.targets, ours.lr], expected)
    assert torch.isfinite(ours.lr)
    assert ours.lr != 0
    if lr == 0:
        assert not ours.images.any()
        assert not ours.targets.any()
