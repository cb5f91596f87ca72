"""Training as one CUDA graph a step takes the very steps that it takes kernel by kernel."""

import gc
from contextlib import suppress

import pytest
import torch

from feddgm_flwr.core.capturing import not_collecting
from feddgm_flwr.core.distillation.distill import Bench, DistillJob, distill_client
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.local import ClientConfig, Task, walk
from feddgm_flwr.core.models import SurrogateConfig, build_surrogate
from feddgm_flwr.core.params import params_of
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.state import Extra
from feddgm_flwr.core.training import PLAIN, Rule
from feddgm_flwr.methods.fedlc import calibrated_loss
from feddgm_flwr.methods.fedprox import proximal_rule
from feddgm_flwr.methods.fedrs import restricted_softmax
from feddgm_flwr.methods.moon import rule as moon_rule
from feddgm_flwr.methods.scaffold import rule as scaffold_rule
from feddgm_flwr.priors.pixel import PixelPrior

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
GPU = torch.device("cuda")
SPEC = ImageSpec(
    channels=3, size=16, classes=tuple("abcde"), mean=(0.5,) * 3, std=(0.25,) * 3, flip=True
)


def data(n=70):
    rng = derive(0, "images")
    return ImageSet(torch.rand(n, 3, 16, 16, generator=rng), torch.arange(n) % 4)


def network():
    torch.manual_seed(0)
    return build_surrogate(SurrogateConfig(depth=2, width=16), SPEC)


def task():
    params = params_of(network())
    noise = {k: 0.01 * torch.randn(p.shape, generator=derive(1, k)) for k, p in params.items()}
    return Task(params, 1, Extra(tensors=noise)).to(GPU)


def rules():
    asked, counts = task(), torch.bincount(data().labels, minlength=5).to(GPU)
    return {
        "plain": PLAIN,
        "fedprox": proximal_rule(asked, 0.1),
        "scaffold": scaffold_rule(asked, data()),
        "fedrs": Rule(objective=restricted_softmax(counts, 0.5)),
        "fedlc": Rule(objective=calibrated_loss(counts, 1.0)),
        "moon": moon_rule(asked, mu=1.0, temperature=0.5),
    }


def trained(rule, *, compile, n=70, **said):
    said = {"epochs": 2, "lr": 0.05, "batch_size": 16, "augment": "flip", **said}
    return walk(
        network(),
        data(n),
        task(),
        ClientConfig(compile=compile, **said),
        rule,
        rng=derive(2, "order"),
        device=GPU,
    )


def assert_same(a, b):
    assert a.steps == b.steps
    assert a.loss == pytest.approx(b.loss, rel=1e-5)
    for name in a.params:
        torch.testing.assert_close(a.params[name], b.params[name], rtol=1e-4, atol=1e-6)


@needs_gpu
@pytest.mark.parametrize("name", ["plain", "fedprox", "scaffold", "fedrs", "fedlc", "moon"])
def test_a_recorded_step_is_the_plain_one(name):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    rule = rules()[name]
    plain, recorded = (trained(rule, compile=compile) for compile in (False, True))
    assert_same(plain, recorded)


@needs_gpu
@pytest.mark.parametrize("said", [{"momentum": 0.9}, {"momentum": 0.9, "weight_decay": 0.01}])
def test_warming_up_leaves_no_trace_in_momentum(said):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    assert_same(trained(PLAIN, compile=False, **said), trained(PLAIN, compile=True, **said))


@needs_gpu
def test_fewer_images_than_a_batch_are_trained_as_they_are():
    assert_same(trained(PLAIN, compile=False, n=10), trained(PLAIN, compile=True, n=10))


@needs_gpu
@pytest.mark.parametrize("said", [{}, {"labels": "soft"}])
def test_a_recorded_descent_is_the_plain_one(said, monkeypatch):
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    recorded = descended(**said)
    monkeypatch.setattr("feddgm_flwr.core.distillation.distill.sees_all", lambda *_: False)
    plain = descended(**said)
    for loss in ("first_loss", "last_loss"):
        assert getattr(recorded.report, loss) == pytest.approx(
            getattr(plain.report, loss), rel=1e-3
        )
    torch.testing.assert_close(recorded.images, plain.images, rtol=1e-2, atol=1e-3)


@needs_gpu
@pytest.mark.parametrize("do", [lambda: trained(PLAIN, compile=True), lambda: descended()])
def test_a_recording_is_gone_with_what_it_was_made_for(do):
    do()  # libraries take memory once
    gc.collect()
    gc.disable()  # a cycle would stay
    try:
        before = torch.cuda.memory_allocated()
        do()
        assert torch.cuda.memory_allocated() == before
    finally:
        gc.enable()


@pytest.mark.parametrize("on", [True, False])
def test_no_garbage_is_looked_for_meanwhile(on):
    was = gc.isenabled()
    try:
        (gc.enable if on else gc.disable)()
        with suppress(RuntimeError), not_collecting():
            assert not gc.isenabled()
            raise RuntimeError
        assert gc.isenabled() == on
    finally:
        (gc.enable if was else gc.disable)()


def descended(**said):
    bench = Bench(
        student=network(),
        prior=PixelPrior(SPEC),
        config=DistillConfig(iterations=6, **said),
        spec=SPEC,
        chunk=16,
        device=GPU,
    )
    ended = trained(PLAIN, compile=False)
    job = DistillJob(
        partition_id=0,
        server_round=1,
        seed=0,
        start=params_of(network()),
        target=ended.params,
        images_per_class={0: 2, 1: 2, 2: 2, 3: 2},
        latents=None,
    )
    return distill_client(job, bench)
