"""A run's tools are those that its config names."""

import contextlib
import dataclasses

import pytest
import torch
import toy

from feddgm_flwr import build
from feddgm_flwr.build import build_engine, build_learners, build_tools, first_state, workshop
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import apply_round
from feddgm_flwr.core.distillation.engine import ProcessEngine, SerialEngine
from feddgm_flwr.priors.pixel import PixelPrior

ALL = "color_crop_cutout_flip_scale_rotate"
NO_FLIP = "color_crop_cutout_scale_rotate"


def config(**said) -> RunConfig:
    said = {k.replace("__", ".").replace("_", "-"): v for k, v in said.items()}
    return RunConfig.from_run_config({**toy.CONFIG, **said})


@pytest.mark.parametrize(("flip", "expected"), [(True, ALL), (False, NO_FLIP)])
def test_flips_are_dropped_where_a_mirrored_image_changes_its_class_and_kept_elsewhere(
    flip, expected
):
    asked = config(
        distill__augment=ALL,
        union__augment=ALL,
        global_model__augment=ALL,
        global_model__names="convnet",
    )
    tools = build_tools(asked, dataclasses.replace(toy.SPEC, flip=flip))
    assert tools.bench.config.augment == expected
    assert tools.learners.surrogate.config.augment == expected
    assert tools.learners.global_models["convnet"].config.augment == expected


def test_learners_train_by_their_own_sections():
    asked = config(union__lr=0.25, global_model__lr=0.75, global_model__names="vit,convnet")
    learners = build_learners(asked, toy.SPEC)
    assert learners.surrogate.name == "surrogate"
    assert learners.surrogate.config.lr == 0.25
    assert list(learners.global_models) == ["vit", "convnet"]
    for name, learner in learners.global_models.items():
        assert (learner.name, learner.config.lr) == (name, 0.75)


def test_the_bench_has_the_surrogate_itself_and_the_prior_that_is_named():
    asked = config(prior__chunk=5)
    tools = build_tools(asked, toy.SPEC)
    assert tools.bench.student is tools.learners.surrogate.module
    assert isinstance(tools.bench.prior, PixelPrior)
    assert (tools.bench.chunk, tools.bench.spec) == (5, toy.SPEC)
    assert tools.bench.config == asked.distill


@pytest.mark.parametrize(
    ("said", "taught"),
    [
        ({"method": "feddgm"}, True),
        ({"method": "fedavg"}, False),
        ({"method": "fedavg", "start__weights": "prior"}, True),
    ],
)
def test_prior_and_global_models_are_built_only_where_something_would_teach_them(said, taught):
    tools = build_tools(config(global_model__names="convnet", **said), toy.SPEC)
    assert list(tools.learners.global_models) == (["convnet"] if taught else [])
    assert (tools.bench is not None) == taught
    assert tools.learners.surrogate.module is not None


def test_a_method_that_makes_no_images_starts_without_a_prior():
    asked = config(method="fedavg", start__weights="method")
    tools = build_tools(asked, toy.SPEC)
    state = first_state(asked, tools, toy.quiet)
    assert state.global_models == {}
    assert state.server_round == 0


def bench():
    return toy.server().tools.bench


@pytest.mark.parametrize(
    ("said", "kind"),
    [
        ({"distill__engine": "serial"}, SerialEngine),
        ({"distill__engine": "processes", "distill__workers": 2}, ProcessEngine),
        ({"distill__engine": "processes", "distill__workers": 1}, SerialEngine),
    ],
)
def test_each_engines_name_builds_it_and_one_worker_needs_no_pool(said, kind):
    with contextlib.closing(build_engine(config(**said).distill, bench())) as engine:
        assert type(engine) is kind


def test_as_many_workers_as_cores_are_built_where_none_are_named(monkeypatch):
    monkeypatch.setattr(build, "default_workers", lambda device: 3)
    asked = config(distill__engine="processes").distill
    with contextlib.closing(build_engine(asked, bench())) as engine:
        assert engine._workers == 3
    monkeypatch.setattr(build, "default_workers", lambda device: 1)
    assert type(build_engine(asked, bench())) is SerialEngine


# Importing Ray leaves a file to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning")
def test_the_ray_engine_is_built_with_its_settings_and_joins_nothing_yet():
    import ray

    from feddgm_flwr.cluster import RayEngine

    asked = config(distill__engine="ray", distill__workers=4, distill__ray_address="10.0.0.1:6379")
    with contextlib.closing(build_engine(asked.distill, bench())) as engine:
        assert type(engine) is RayEngine
        assert (engine._workers, engine._address) == (4, "10.0.0.1:6379")
        assert engine._gpus == 0.0  # the bench is on the CPU
        assert not ray.is_initialized()


def test_compiling_without_a_compiler_is_refused_with_the_remedy(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    asked = config(distill__compile=True).distill
    with pytest.raises(ValueError, match=r"no-such-compiler is not found; install one"):
        build_engine(asked, bench())


def test_a_compiler_is_asked_for_only_where_it_is_used(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert build_engine(config().distill, bench())
    on_gpu = dataclasses.replace(bench(), device=torch.device("cuda"))
    assert build_engine(config(distill__compile=True).distill, on_gpu)


def test_a_workshop_runs_a_round_and_releases_its_workers_whatever_happens(monkeypatch):
    asked, closed = config(union__epochs=3, seed=5), []
    tools = build_tools(asked, toy.SPEC)
    monkeypatch.setattr(SerialEngine, "close", lambda self: closed.append(self))
    with workshop(asked, tools) as shop:
        assert (shop.union, shop.client, shop.seed) == (asked.union, asked.client, 5)
        state = first_state(asked, tools, toy.quiet)
        after, _ = apply_round(state, [], shop, emit=toy.quiet)
        assert after.server_round == 1
        assert closed == []
    assert closed == [shop.engine]
    with pytest.raises(KeyError), workshop(asked, tools):
        raise KeyError
    assert len(closed) == 2


def test_a_prior_that_cannot_make_the_datas_images_is_refused():
    colour = dataclasses.replace(toy.SPEC, channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    with pytest.raises(ValueError, match="kind pixel or autoencoder"):
        build_tools(config(prior__kind="glyphs"), colour)


def test_a_surrogate_too_deep_for_the_images_is_refused():
    with pytest.raises(ValueError, match="at most 3 for images of 8 pixels"):
        build_tools(config(surrogate__depth=4), toy.SPEC)
