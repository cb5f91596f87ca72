"""A student's second derivatives: in closed form as by autograd, kept or not."""

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from feddgm_flwr.core.distillation import convnet
from feddgm_flwr.core.distillation.convnet import ConvNetStudent
from feddgm_flwr.core.distillation.distill import student_of
from feddgm_flwr.core.distillation.student import AutogradStudent
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import ConvNet, SurrogateConfig, build_surrogate
from feddgm_flwr.core.params import params_of


class Case:
    """A ConvNet at a random point, random images, soft targets and a direction."""

    def __init__(self, depth=2, width=8, norm="instance", channels=1, side=9, n=5):
        torch.manual_seed(depth + width + side)
        self.spec = ImageSpec(
            channels, side, ("a", "b", "c"), (0.4,) * channels, (0.3,) * channels, flip=False
        )
        self.config = SurrogateConfig(depth=depth, width=width, norm=norm)
        self.net = build_surrogate(self.config, self.spec).double()
        self.params = {k: p + 0.1 * torch.randn_like(p) for k, p in params_of(self.net).items()}
        self.images = torch.rand(n, channels, side, side, dtype=torch.float64)
        self.targets = torch.rand(n, 3, dtype=torch.float64)  # rows need not sum to one
        self.direction = [torch.randn_like(p) for p in self.params.values()]

    def step(self, student, *, keep=True):
        return student.step(self.params, self.images, self.targets, keep=keep)


def assert_same(a, b):
    """Gradient and all derivatives along the direction agree."""
    (gradient_a, pulled_a), (gradient_b, pulled_b) = a, b
    pairs = [*zip(gradient_a, gradient_b, strict=True)]
    pairs += [(getattr(pulled_a, k), getattr(pulled_b, k)) for k in ("slope", "images", "targets")]
    pairs += zip(pulled_a.params, pulled_b.params, strict=True)
    for mine, theirs in pairs:
        torch.testing.assert_close(mine, theirs)


def differentiated(case, student, **kwargs):
    gradient, trace = case.step(student, **kwargs)
    return gradient, trace.pull(case.direction, through=True)


@settings(max_examples=30, deadline=None)
@given(
    depth=st.integers(1, 3),
    width=st.sampled_from([1, 3, 16, 32]),
    norm=st.sampled_from(["instance", "group", "none"]),
    channels=st.sampled_from([1, 3]),
    side=st.integers(8, 15),
    n=st.integers(1, 7),
)
def test_closed_form_equals_autograd(depth, width, norm, channels, side, n):
    case = Case(depth, width, norm, channels, side, n)
    closed = differentiated(case, ConvNetStudent(case.net))
    assert_same(closed, differentiated(case, AutogradStudent(case.net)))


def test_autograd_student_has_the_gradient_of_the_mean_cross_entropy():
    case = Case()
    leaves = {k: p.clone().requires_grad_() for k, p in case.params.items()}
    loss = cross_entropy(functional_call(case.net, leaves, (case.images,)), case.targets)
    gradient, trace = case.step(AutogradStudent(case.net))
    for mine, theirs in zip(gradient, torch.autograd.grad(loss, leaves.values()), strict=True):
        torch.testing.assert_close(mine, theirs)
    slope = sum((g * v).sum() for g, v in zip(gradient, case.direction, strict=True))
    torch.testing.assert_close(trace.pull(case.direction, through=False).slope, slope)


@pytest.mark.parametrize("norm", ["instance", "group", "none"])
@pytest.mark.parametrize(("chunk", "piece"), [(1, 1), (2, 2), (3, 1), (5, 2)])
def test_a_few_images_at_a_time_are_all_of_them(norm, chunk, piece, monkeypatch):
    case = Case(norm=norm)
    whole = differentiated(case, ConvNetStudent(case.net))
    first_map = 8 * 9 * 9 * 8
    monkeypatch.setattr(convnet, "CHUNK_BYTES", chunk * first_map)
    monkeypatch.setattr(convnet, "PIECE_BYTES", piece * first_map)
    assert_same(whole, differentiated(case, ConvNetStudent(case.net)))


@pytest.mark.parametrize("kind", [ConvNetStudent, AutogradStudent])
def test_a_trace_that_was_not_kept_gives_the_same_bits(kind):
    case = Case()
    kept, again = (differentiated(case, kind(case.net), keep=keep) for keep in (True, False))
    for a, b in zip(kept[0] + kept[1].params, again[0] + again[1].params, strict=True):
        assert torch.equal(a, b)
    assert torch.equal(kept[1].images, again[1].images)


@pytest.mark.parametrize("kind", [ConvNetStudent, AutogradStudent])
def test_kept_bytes_grow_with_the_images(kind):
    def held(n, *, keep=True):
        case = Case(n=n)
        return case.step(kind(case.net), keep=keep)[1].nbytes

    assert held(16) > 2 * held(4) > 4 * held(1) > 0
    assert held(16, keep=False) == 0


@pytest.mark.parametrize("kind", [ConvNetStudent, AutogradStudent])
def test_what_is_not_asked_for_is_not_computed(kind):
    case = Case()
    _, trace = case.step(kind(case.net))
    assert trace.pull(case.direction, through=False).params is None


def test_bfloat16_convolutions_stay_within_what_the_docs_say():
    def apart(a, b):
        a, b = (torch.cat([t.flatten() for t in tensors]) for tensors in (a, b))
        return float((a - b).norm() / a.norm())

    case = Case(depth=3, width=32, channels=3, side=16, n=8)
    exact = differentiated(case, ConvNetStudent(case.net))
    rounded = differentiated(case, ConvNetStudent(case.net, torch.bfloat16))
    assert 0 < apart(exact[0], rounded[0]) < 0.05
    assert apart(exact[1].params, rounded[1].params) < 0.1
    assert apart([exact[1].images], [rounded[1].images]) < 0.2


@pytest.mark.slow
@pytest.mark.skipif(
    not (shutil.which("g++") and Path(sysconfig.get_path("include"), "Python.h").exists()),
    reason="torch.compile needs g++ and Python's headers",
)
@pytest.mark.parametrize("norm", ["instance", "group"])
def test_compiled_passes_are_the_eager_ones(norm):
    # In a process of its own, without the type checks that tests put on every function.
    command = [sys.executable, __file__, norm]
    folder = Path(__file__).parent
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert said.returncode == 0, said.stderr[-3000:]


def compare_compiled(norm):
    case = Case(width=8, norm=norm)
    compiled = ConvNetStudent(case.net, compiled=True)
    eager = differentiated(case, ConvNetStudent(case.net))
    assert_same(eager, differentiated(case, compiled))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    kept, again = (differentiated(case, compiled, keep=keep) for keep in (True, False))
    assert torch.equal(kept[1].images, again[1].images)


def test_the_surrogate_is_differentiated_in_closed_form_and_others_by_torch():
    case = Case()
    assert isinstance(student_of(case.net), ConvNetStudent)
    assert isinstance(student_of(torch.nn.Flatten()), AutogradStudent)


class Doubled(ConvNet):
    """A surrogate of the same layers that computes something else."""

    def forward(self, images):
        return 2 * super().forward(images) ** 2


def test_a_subclass_that_computes_something_else_goes_through_autograd_and_is_right():
    case = Case()
    case.net.__class__ = Doubled
    student = student_of(case.net)
    assert isinstance(student, AutogradStudent)

    leaves = {k: p.clone().requires_grad_() for k, p in case.params.items()}
    images, targets = (t.clone().requires_grad_() for t in (case.images, case.targets))
    loss = cross_entropy(2 * plain(case, leaves, images) ** 2, targets)
    truth = torch.autograd.grad(loss, leaves.values(), create_graph=True)
    slope = sum((g * v).sum() for g, v in zip(truth, case.direction, strict=True))
    second = torch.autograd.grad(slope, [images, targets, *leaves.values()])

    gradient, pulled = differentiated(case, student)
    mine = [*gradient, pulled.slope, pulled.images, pulled.targets, *pulled.params]
    for ours, theirs in zip(mine, [*truth, slope, *second], strict=True):
        torch.testing.assert_close(ours, theirs.detach())
    # The closed form of the plain one would be wrong here.
    wrong = ConvNetStudent(case.net).step(case.params, case.images, case.targets, keep=True)[0]
    assert not torch.allclose(wrong[0], gradient[0], rtol=1e-2)


def plain(case, params, images):
    """The logits of the surrogate proper."""
    net = build_surrogate(case.config, case.spec).double()
    return functional_call(net, params, (images,))


if __name__ == "__main__":
    compare_compiled(sys.argv[1])
