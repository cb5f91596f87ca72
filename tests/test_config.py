"""Configuration: a round trip from flat keys, and one clear sentence for every mistake."""

import dataclasses
import math
import re
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddgm_flwr import methods
from feddgm_flwr.config import (
    AUTO,
    DELETED,
    RENAMED,
    STATIC,
    RunConfig,
    check_known,
    may_differ,
    recipe_values,
    sections,
    settings,
)
from feddgm_flwr.core.augment import DRAWS
from feddgm_flwr.core.models import GLOBAL_MODELS
from feddgm_flwr.core.settings import Settings
from feddgm_flwr.data.settings import OWN, DataConfig
from feddgm_flwr.methods.fedprox import FedProxConfig
from feddgm_flwr.methods.flowers import FedOptConfig, RobustConfig
from feddgm_flwr.methods.scaffold import ScaffoldConfig

ROOT = Path(__file__).parent.parent
KNOWN = settings()
DEFAULTS = {key: declared.default for key, declared in KNOWN.items()}
# Looked up once: the type checks of a call draw from ``random``, which a strategy must not.
ONLY = {key: declared.only for key, declared in KNOWN.items()}
AUGMENTS_EXPECTED = f"\"\" or names of {tuple(sorted(DRAWS))} joined by '_', after 'one:' or not"
RECIPES = {"feddgm": {}, "paper": recipe_values()}


def of_type(*hints: type) -> list[str]:
    return [key for key, declared in KNOWN.items() if declared.hint in hints]


CHOICES = [key for key, declared in KNOWN.items() if get_origin(declared.hint) is Literal]


def under(key: str) -> dict[str, object]:
    """Return what else must be said for ``key`` to be read."""
    said = {switch: allowed[0] for switch, allowed in ONLY[key].items()}
    if said.get("data.name") in OWN:
        said["data.class-names"] = "cat,dog"
    if said.get("prior.kind") in ("autoencoder", "pipeline"):
        said["prior.path"] = "hub/id"
    return {k: v for k, v in said.items() if k != key}


def build(**said) -> RunConfig:
    return RunConfig.from_run_config(
        {k.replace("__", ".").replace("_", "-"): v for k, v in said.items()}
    )


def complaint(flat: dict[str, object], error: type[Exception] = ValueError) -> str:
    with pytest.raises(error) as caught:
        RunConfig.from_run_config(flat)
    return str(caught.value)


# What is said is what is read.

SPECIAL = {
    "method": st.sampled_from(methods.names()),
    "data.channels": st.sampled_from([1, 3]),
    "data.class-names": st.just("cat,dog"),
    "prior.path": st.just("hub/id"),
    "global-model.names": st.sampled_from(["", "resnet18", "vit, convnet"]),
    "surrogate.narrow-widths": st.sampled_from(["", "16", "16, 8,16"]),
    "prior.prompt": st.just("a {class}"),
    "feddf.images": st.sampled_from(["prior", "/data/x"]),
    "client.device": st.sampled_from(["auto", "cpu", "cuda:0"]),
    "server.device": st.sampled_from(["auto", "cpu", "cuda:0"]),
    "server.clip-examples": st.just(0.0) | st.floats(1, 1e6),
    "server.clip-movement": st.just(0.0) | st.floats(1, 1e6),
}
AUGMENTS = st.lists(st.sampled_from(sorted(DRAWS)), unique=True).map("_".join)


def value_of(key: str) -> st.SearchStrategy:
    """Return values that are in range for ``key``."""
    hint, about = KNOWN[key].hint, KNOWN[key].about
    if key in SPECIAL:
        return SPECIAL[key]
    if key.endswith("augment"):
        return AUGMENTS
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if hint is int:
        return st.integers(about.ge, 99 if about.le is None else about.le)
    if hint is float:
        low, high = (b if a is None else a for a, b in ((about.ge, about.gt), (about.le, about.lt)))
        return st.floats(
            *(low, 1e6 if high is None else high),
            exclude_min=about.gt is not None,
            exclude_max=about.lt is not None,
        )
    return {bool: st.booleans(), str: st.sampled_from(["", "/data/x", "a b"])}[hint]


def readable(flat: dict[str, object]) -> dict[str, object]:
    """Return ``flat`` less what its own settings leave unread."""
    whole = {**DEFAULTS, **RECIPES[flat.get("recipe", "feddgm")], **flat}
    if whole["method"] != "feddgm" or whole["surrogate.width"] <= 16:
        flat = {key: value for key, value in flat.items() if key != "surrogate.narrow-widths"}
    if not methods.takes_mean(whole["method"]):
        unread = ("server.aggregate", "server.trim")
        flat = {key: value for key, value in flat.items() if key not in unread}
    if whole["distill.of"] == "aggregate":
        flat = {key: value for key, value in flat.items() if key != "union.examine"}
    if methods.has_own_loss(whole["method"]):
        flat = {key: value for key, value in flat.items() if key != "client.loss"}
    if not methods.trains_plainly(whole["method"]):
        flat = {key: value for key, value in flat.items() if key != "privacy.noise-multiplier"}
    elif whole["privacy.noise-multiplier"]:
        flat = {key: value for key, value in flat.items() if key not in UNCOVERED}
    return {
        key: value
        for key, value in flat.items()
        if all(whole[switch] in allowed for switch, allowed in ONLY[key].items())
    }


UNCOVERED = (
    "client.share-label-counts", "client.compile", "client.loss", "rounds.federated-evaluation",
)  # fmt: skip
"""What noise on the clients does not go with."""
ALWAYS = ("data.class-names", "prior.path")
FLAT = st.fixed_dictionaries(
    # `folder` needs class names and `autoencoder` a path, so both are always said.
    {key: value_of(key) for key in ALWAYS},
    optional={key: value_of(key) for key in KNOWN if key not in ALWAYS},
).map(readable)


@hypothesis.settings(deadline=None)
@given(FLAT)
def test_what_was_said_is_what_is_read_and_a_round_trip_changes_nothing(flat):
    config = RunConfig.from_run_config(flat)
    resolved = config.flat()
    assert {k: resolved[k] for k in flat} == flat
    assert RunConfig.from_run_config(resolved) == config
    assert list(resolved) == list(KNOWN)


def test_a_flat_config_lists_every_key_in_the_order_of_the_settings():
    assert list(RunConfig().flat().items()) == list(DEFAULTS.items())


def test_nothing_said_is_every_default():
    assert RunConfig.from_run_config({}) == RunConfig()


@pytest.mark.parametrize("recipe", RECIPES)
def test_auto_is_what_the_recipe_says_and_the_default_where_it_says_nothing(recipe):
    auto = {k: AUTO for k in KNOWN if k != "recipe"}
    resolved = RunConfig.from_run_config({**auto, "recipe": recipe}).flat()
    assert resolved == {**DEFAULTS, **RECIPES[recipe], "recipe": recipe}


def test_an_automatic_recipe_is_ours():
    assert build(recipe="auto") == RunConfig()
    assert build(recipe="auto").recipe == "feddgm"


def test_auto_is_a_device_and_a_prior_of_its_own():
    assert (build().client.device, build(server__device="auto").server.device) == (AUTO, AUTO)
    assert [k for k, default in DEFAULTS.items() if default == AUTO] == [
        *("client.device", "prior.kind", "server.device")
    ]


def test_what_is_said_beats_the_recipe():
    config = build(recipe="paper", client__epochs=2, client__lr="auto")
    assert (config.client.epochs, config.client.lr) == (2, 0.01)
    assert build(recipe="paper", distill__warm_start=True).distill.warm_start is True


# Recipes.


def test_the_paper_recipe_is_the_authors_settings():
    every = "one:color_crop_cutout_flip_scale_rotate"
    assert recipe_values() == {
        "client.epochs": 20,
        "client.lr": 0.01,
        "client.batch-size": 256,
        "surrogate.depth": 5,
        "surrogate.width": 128,
        "start.weights": "random",
        "distill.images-per-class": 10,
        "distill.iterations": 100,
        "distill.warm-iterations": 100,
        "distill.student-steps": 20,
        "distill.student-lr": 0.01,
        "distill.student-lr-lr": 1e-5,
        "distill.optimizer": "sgd",
        "distill.latent-lr": 1.0,
        "distill.gradient": "detached",
        "distill.augment": every,
        "distill.classes": "all",
        "distill.warm-start": False,
        "union.surrogate-update": "synthetic",
        "union.balance-classes": False,  # of later than these settings, and none of theirs
        "union.epochs": 1000,
        "union.lr": 0.01,
        "union.momentum": 0.0,
        "union.batch-size": 256,
        "union.augment": every,
        "union.prior-images-per-class": 0,
        "global-model.taught-by": "labels",
        "global-model.epochs": 1000,
        "global-model.lr": 0.01,
        "global-model.weight-decay": 1e-5,
        "global-model.batch-size": 256,
        "global-model.augment": every,
    }


def test_the_paper_recipe_leaves_these_of_the_authors_settings_at_our_defaults():
    authors = {
        "surrogate.norm": "instance",
        "global-model.momentum": 0.9,
        "prior.feature-block": 0,
        "distill.student-batch": 0,
        "distill.momentum": 0.5,
        "distill.labels": "hard",
        "distill.stop-tolerance": 0.0,
        "union.weight-by-examples": False,
    }
    resolved = build(recipe="paper").flat()
    assert {k: resolved[k] for k in authors} == authors


def test_a_recipe_says_only_what_is_of_the_type_and_differs_from_the_default():
    for key, value in recipe_values().items():
        assert type(value) is type(DEFAULTS[key]), key
        assert value != DEFAULTS[key], key


@pytest.mark.parametrize("kind", ["auto", "glyphs", "autoencoder", "pipeline", "pixel"])
@pytest.mark.parametrize("method", methods.names())
def test_the_paper_recipe_builds_for_every_method_and_prior(method, kind):
    path = {"prior.path": "hub/id"} if kind in ("autoencoder", "pipeline") else {}
    said = {"recipe": "paper", "method": method, "prior.kind": kind, **path}
    config = RunConfig.from_run_config(said)
    assert config.flat() == {**DEFAULTS, **recipe_values(), **said}
    assert RunConfig.from_run_config(config.flat()) == config


# Keys.


@pytest.mark.parametrize("key", ["distill.x", "lr", "", "Seed", "data"])
def test_unknown_keys_are_refused_by_name(key):
    assert key not in KNOWN
    said = complaint({key: 1, "seed": 1})
    assert re.match(rf"unknown run-config keys: {re.escape(key)}( may mean \S+)?; ", said)
    assert said.endswith("docs/config.md lists the known ones")


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("distill.iteration", "distill.iterations"),
        ("distill_iterations", "distill.iterations"),
        ("distill.images_per_class", "distill.images-per-class"),
        ("clients.epochs", "client.epochs"),
        ("num-rounds", "num-server-rounds"),
        ("metod", "method"),
    ],
)
def test_a_misspelt_key_is_told_the_nearest(wrong, right):
    assert f"{wrong} may mean {right};" in complaint({wrong: 1})


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_renamed_key_is_told_its_new_name(old, new):
    assert old not in KNOWN
    assert new in KNOWN
    assert f"{old} is now called {new};" in complaint({old: 1})


def test_every_key_of_the_first_version_is_known_or_renamed():
    # The sections of version 0.1.0, as far as they are gone or lost keys.
    old = {"generator": 6, "baseline": 6, "server": 18, "distill": 2, "global-model": 1}
    lost = [key for key in (*RENAMED, "distill.replay-rounds") if "." in key]
    gone = [key.partition(".")[0] for key in lost]
    assert {section: gone.count(section) for section in old} == old
    assert len(set(RENAMED.values())) == len(RENAMED) == 33


@pytest.mark.parametrize("key", DELETED)
def test_a_deleted_key_is_told_why_it_is_gone(key):
    assert key not in {*KNOWN, *RENAMED}
    assert f"{key} is gone ({DELETED[key].was} was worth nothing; leave it out);" in complaint(
        {key: 1}
    )


def test_all_unknown_keys_are_told_at_once():
    with pytest.raises(ValueError, match="unknown") as caught:
        check_known({"strategy": "fedavg", "seed": 1, "client.epoch": 2, "?": 3})
    assert str(caught.value) == (
        "unknown run-config keys: ?, client.epoch may mean client.epochs, strategy is now called "
        "method; docs/config.md lists the known ones"
    )


# Values.


@pytest.mark.parametrize("key", of_type(bool, int, float, str))
def test_a_value_of_the_wrong_type_is_refused_with_key_value_and_type(key):
    hint = KNOWN[key].hint
    for wrong in {
        bool: (1, 0, "true"),
        int: (True, 1.0, "1"),
        float: (True, "0.1"),
        str: (1, 0.5, False),
    }[hint]:
        said = complaint({key: wrong}, TypeError)
        assert said == (
            f"{key} must be {hint.__name__}, got {wrong!r} ({type(wrong).__name__}); "
            "change it with -c"
        )


@pytest.mark.parametrize("key", of_type(float))
def test_a_whole_number_serves_where_a_fraction_may_stand(key):
    value = next((v for v in (1, 0) if KNOWN[key].about.allows(v)), None)
    if value is None:  # between the two there is none
        assert complaint({**under(key), key: 1}).startswith(f"{key} must be in (0, 1), got 1.0;")
        return
    read = RunConfig.from_run_config({**under(key), key: value}).flat()[key]
    assert (read, type(read)) == (value, float)


@pytest.mark.parametrize("key", CHOICES)
def test_a_word_that_is_none_of_the_choices_is_refused_with_them(key):
    for wrong in ("neither", "", 1, True):
        said = complaint({key: wrong})
        assert said == (
            f"{key} must be one of {get_args(KNOWN[key].hint)}, got {wrong!r}; change it with -c"
        )


BOUNDS = [
    (key, side, bound)
    for key, declared in KNOWN.items()
    for side in ("ge", "gt", "le", "lt")
    if (bound := getattr(declared.about, side)) is not None
]


@pytest.mark.parametrize(("key", "side", "bound"), BOUNDS)
def test_a_value_just_beyond_a_bound_is_refused_with_key_value_and_expectation(key, side, bound):
    fraction = KNOWN[key].hint is float
    if fraction:
        beyond = math.nextafter(bound, -math.inf if side == "ge" else math.inf)
        beyond = beyond if side in ("ge", "le") else float(bound)
    else:
        beyond = bound + {"ge": -1, "gt": 0, "lt": 0, "le": 1}[side]
    said = complaint({**under(key), key: beyond})
    expected = KNOWN[key].about.expected
    assert said == f"{key} must be {expected}, got {beyond!r}; change it with -c"
    assert f"{bound:g}" in expected


@pytest.mark.parametrize(("key", "side", "bound"), [b for b in BOUNDS if b[1] in ("ge", "le")])
def test_a_value_on_a_closed_bound_is_accepted(key, side, bound):
    value = KNOWN[key].hint(bound)
    assert RunConfig.from_run_config({**under(key), key: value}).flat()[key] == value


@pytest.mark.parametrize(("key", "side", "bound"), [b for b in BOUNDS if b[1] in ("gt", "lt")])
def test_a_value_just_within_an_open_bound_is_accepted(key, side, bound):
    value = math.nextafter(bound, math.inf if side == "gt" else -math.inf)
    assert RunConfig.from_run_config({**under(key), key: value}).flat()[key] == value


def test_every_number_has_a_lower_bound():
    bounded = {key for key, side, _ in BOUNDS if side in ("ge", "gt")}
    assert bounded == set(of_type(int, float))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("key", of_type(float))
def test_a_fraction_that_is_no_number_is_refused(key, value):
    said = complaint({**under(key), key: value})
    assert said == f"{key} must be a finite number, got {value!r}; change it with -c"


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("method", "fedsgd", f"one of {methods.names()}"),
        ("method", "", f"one of {methods.names()}"),
        *[
            (f"{section}.augment", wrong, AUGMENTS_EXPECTED)
            for section in ("client", "distill", "union", "global-model")
            for wrong in ("color_blur", "color__flip", "flips", "_", "Flip")
        ],
        *[
            ("global-model.names", wrong, f"different names of {GLOBAL_MODELS} joined by ','")
            for wrong in (
                *("resnet18,resnet50", ",", " ", "convnet,,vit", "convnet,", ",convnet"),
                *("convnet,convnet", "convnet, vit, convnet"),
            )
        ],
        ("data.channels", 2, "1 or 3"),
    ],
)
def test_a_word_out_of_range_is_refused_with_key_value_and_expectation(key, value, expected):
    assert complaint({key: value}) == f"{key} must be {expected}, got {value!r}; change it with -c"


@pytest.mark.parametrize("method", methods.names())
def test_every_registered_method_can_be_said(method):
    assert build(method=method).method == method


def test_own_data_need_class_names_and_an_autoencoder_needs_a_path():
    for name in OWN:
        assert complaint({"data.name": name}).startswith("data.class-names must be")
        assert complaint({"data.name": name, "data.class-names": " , "}).endswith("with -c")
    assert complaint({"prior.kind": "autoencoder"}).startswith("prior.path must be")


def test_class_names_and_model_names_are_parsed_in_one_place():
    assert DataConfig(class_names=" cat, dog ,,").class_list == ("cat", "dog")
    names = build(global_model__names="vit, resnet18").global_model.name_list
    assert names == ("vit", "resnet18")


# What another setting leaves unread.

BY_LABELS = {"global-model.taught-by": "labels"}
UNREAD = [
    ({}, "global-model.epochs", 7),
    ({"recipe": "paper", "global-model.taught-by": "models"}, "global-model.epochs", 7),
    (BY_LABELS, "global-model.steps", 7),
    (BY_LABELS, "global-model.listening-lr", 0.1),
    (BY_LABELS, "global-model.temperature", 2.0),
    (BY_LABELS, "global-model.replies-share", 0.5),
    (BY_LABELS, "global-model.leaves", 0.25),
    ({"prior.kind": "pixel"}, "prior.path", "hub/id"),
    ({"prior.kind": "pixel"}, "prior.subfolder", "vae"),
    ({"prior.kind": "pixel"}, "prior.feature-block", 1),
    ({"prior.kind": "pixel"}, "prior.image-scale", 2),
    ({}, "prior.image-scale", 2),
    ({}, "prior.feature-block", 1),
    ({}, "prior.pixel-start", "grey"),
    ({"prior.kind": "glyphs"}, "prior.pixel-start", "smooth"),
    ({"prior.kind": "glyphs"}, "prior.revision", "main"),
    *[
        ({"prior.kind": "autoencoder", "prior.path": "hub/id"}, f"prior.{name}", value)
        for name, value in (
            ("decoder", "hub/id"),
            ("words", "cat,dog"),
            ("prompt", "{class}"),
            ("negative-prompt", "blur"),
            ("guidance", 2.0),
            ("steps", 5),
            ("sample-size", 64),
            ("sample-batch", 1),
            ("sample-seed", 1),
            ("per-class", 5),
            ("bank-folder", "/banks"),
        )
    ],
    ({"data.partition": "iid"}, "data.alpha", 0.5),
    ({"data.partition": "classes"}, "data.alpha", 0.5),
    ({"data.partition": "iid"}, "data.min-examples", 1),
    ({}, "data.classes-per-client", 3),
    ({}, "data.root", "/data"),
    ({}, "data.download", True),
    ({"data.name": "npz", "data.class-names": "cat,dog"}, "data.download", True),
    ({"data.name": "mnist"}, "data.class-names", "cat,dog"),
    ({}, "data.channels", 1),
    ({}, "data.image-size", 64),
    ({}, "data.flip", True),
    ({}, "distill.momentum", 0.9),
    ({"distill.labels": "hard"}, "distill.label-lr", 0.1),
    ({"distill.engine": "serial"}, "distill.workers", 2),
    ({}, "distill.ray-address", "host:1"),
    ({"distill.engine": "serial"}, "distill.ray-gpus", 0.5),
    ({"union.surrogate-update": "aggregate"}, "union.classifier-mean", "all"),
    ({"union.surrogate-update": "synthetic"}, "union.aggregate-share", 0.5),
    ({"union.surrogate-update": "synthetic"}, "union.learns", "all"),
    ({"union.surrogate-update": "aggregate"}, "union.teacher-share", 0.5),
    ({"union.surrogate-update": "synthetic"}, "union.server-momentum", 0.9),
    ({}, "server.trim", 0.3),
]


@pytest.mark.parametrize(("under", "key", "value"), UNREAD)
def test_what_another_setting_leaves_unread_is_refused(under, key, value):
    (switch, allowed), *_ = ONLY[key].items()
    got = {**DEFAULTS, **under}[switch]
    assert complaint({**under, key: value}) == (
        f"{key} = {value!r} is read only under {switch} = {' or '.join(map(repr, allowed))}, got "
        f"{switch} = {got!r}; change one of the two with -c"
    )


def test_every_setting_that_may_be_unread_was_tried():
    assert {key for _, key, _ in UNREAD} == {k for k, only in ONLY.items() if only}


@pytest.mark.parametrize(("under", "key"), [(under, key) for under, key, _ in UNREAD])
def test_the_default_of_an_unread_setting_may_be_said(under, key):
    said = {**under, key: {**DEFAULTS, **RECIPES[under.get("recipe", "feddgm")]}[key]}
    assert RunConfig.from_run_config(said) == RunConfig.from_run_config(under)
    assert RunConfig.from_run_config({**under, key: AUTO}) == RunConfig.from_run_config(under)


def test_a_recipe_may_turn_the_switch():
    assert build(recipe="paper", distill__momentum=0.9).distill.momentum == 0.9
    said = complaint({"recipe": "paper", "distill.optimizer": "adam", "distill.momentum": 0.9})
    assert said.startswith("distill.momentum = 0.9 is read only under distill.optimizer = 'sgd'")


def test_what_a_recipe_says_and_a_switch_leaves_unread_may_be_said_again():
    config = build(recipe="paper", global_model__taught_by="models")
    assert config.global_model.epochs == 1000
    assert RunConfig.from_run_config(config.flat()) == config
    assert [key for key in recipe_values() if ONLY[key]] == ["global-model.epochs"]


def test_a_switch_is_a_setting_and_its_values_are_its_choices():
    for key, only in ONLY.items():
        for switch, allowed in only.items():
            assert set(allowed) < set(get_args(KNOWN[switch].hint)), key


# The tree.


def test_every_section_has_a_name_of_its_own_and_its_place_in_the_tree():
    names = [section.section for section in sections()]
    assert names[0] == ""
    assert len(set(names)) == len(names)
    for section in STATIC:
        assert type(getattr(RunConfig(), section.section.replace("-", "_"))) is section


def test_every_setting_is_frozen():
    for tree in (RunConfig().client, RunConfig().of_method(FedProxConfig), RunConfig()):
        for f in dataclasses.fields(tree):
            with pytest.raises(dataclasses.FrozenInstanceError):
                setattr(tree, f.name, getattr(tree, f.name))


def test_a_methods_own_section_is_as_said():
    config = build(
        **{"fedprox__mu": 0.5, "scaffold__server_lr": 0.25, "fedopt__lr": 0.1},
        **{"fedopt__tau": 0.01, "robust__trim": 0.3, "robust__malicious": 2},
    )
    assert config.of_method(FedProxConfig) == FedProxConfig(mu=0.5)
    assert config.of_method(ScaffoldConfig) == ScaffoldConfig(server_lr=0.25)
    assert config.of_method(FedOptConfig) == FedOptConfig(lr=0.1, tau=0.01)
    assert config.of_method(RobustConfig) == RobustConfig(trim=0.3, malicious=2)


@pytest.mark.parametrize("section", methods.sections())
def test_a_methods_own_section_is_its_defaults_where_nothing_is_said(section: type[Settings]):
    assert RunConfig().of_method(section) == section() == build().of_method(section)


@pytest.mark.parametrize(
    ("method", "weights", "makes_images", "starts"),
    [
        ("feddgm", "method", True, True),
        ("feddgm", "random", True, False),
        ("feddgm", "prior", True, True),
        ("fedavg", "method", False, False),
        ("scaffold", "random", False, False),
        ("krum", "prior", False, True),
    ],
)
def test_the_method_decides_the_start_unless_it_is_said(method, weights, makes_images, starts):
    config = build(method=method, start__weights=weights)
    assert (config.makes_images, config.starts_from_prior) == (makes_images, starts)


def test_a_resumed_run_may_change_these_alone():
    assert may_differ() == {
        *("out-dir", "resume", "data.root", "data.download"),
        *("start.control", "prior.path", "prior.subfolder", "prior.sample-batch"),
        *("prior.bank-folder", "server.fidelity-data"),
        *("distill.memory-budget-mb", "distill.engine", "distill.workers"),
        *("distill.ray-address", "distill.ray-gpus"),
        *("rounds.min-clients", "rounds.node-wait-s", "rounds.timeout-s"),
        *("rounds.min-replies", "rounds.partitions", "rounds.takeover"),
        *("watch.images", "watch.growing", "watch.pictures-mb"),
        *("watch.metrics-port", "watch.metrics-host"),
        "rounds.federated-evaluation",
    }


def test_the_declarations_are_gathered_once():
    # A device reads its config for each message.
    assert settings() is settings()
    assert recipe_values() is recipe_values()


# The files.


def flattened(nested: dict[str, object]) -> dict[str, object]:
    flat: dict[str, object] = {}
    for key, value in nested.items():
        inner = isinstance(value, dict)
        flat |= {f"{key}.{k}": v for k, v in value.items()} if inner else {key: value}
    return flat


def app_config() -> dict[str, object]:
    text = (ROOT / "pyproject.toml").read_text()
    return flattened(tomllib.loads(text)["tool"]["flwr"]["app"]["config"])


def test_pyproject_names_exactly_the_known_keys():
    assert list(app_config()) == list(KNOWN)


def test_pyproject_says_only_auto():
    # Otherwise a value there would overrule the recipe.
    assert set(app_config().values()) == {AUTO}


def test_pyproject_alone_gives_the_default_run():
    assert RunConfig.from_run_config(app_config()) == RunConfig()


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.toml")), ids=lambda f: f.stem)
def test_every_experiment_file_is_a_valid_run(file):
    flat = flattened(tomllib.loads(file.read_text()))
    # What a file leaves to its user: where an autoencoder lies on this machine.
    if flat.get("prior.kind") == "autoencoder":
        flat.setdefault("prior.path", "/path/to/autoencoder")
    RunConfig.from_run_config({**app_config(), **flat})


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"server.clip-examples": 0.5}, "server.clip-examples must be 0 or at least 1, got 0.5"),
        ({"server.clip-movement": 0.9}, "server.clip-movement must be 0 or at least 1, got 0.9"),
        (
            {"union.examine": True, "distill.of": "aggregate"},
            "union.examine must be false under distill.of = 'aggregate'",
        ),
        (
            {"method": "feddm", "client.loss": "balanced-softmax"},
            "client.loss must be 'cross-entropy' under method = 'feddm'",
        ),
    ],
)
def test_what_could_only_do_harm_or_nothing_is_refused(said, sentence):
    assert complaint(said).startswith(sentence)


def test_only_where_a_client_of_one_class_has_no_gradient_it_may_stay():
    may = [m for m in methods.names() if build(method=m).may_leave_no_gradient]
    assert may == ["fedlc"]
    assert build(client__loss="balanced-softmax").may_leave_no_gradient


@pytest.mark.parametrize(
    ("said", "idle"),
    [
        ({}, ()),
        ({"fedprox__mu": 0.5}, ("fedprox.mu",)),
        ({"fedprox__mu": 0.5, "method": "fedprox"}, ()),
        ({"distill__iterations": 7, "union__lr": 0.5}, ()),
        ({"distill__iterations": 7, "method": "fedavg"}, ("distill.iterations",)),
        ({"prior__kind": "pixel", "method": "krum"}, ("prior.kind",)),
        ({"prior__kind": "pixel", "method": "krum", "start__weights": "prior"}, ()),
        ({"recipe": "paper", "method": "fedavg"}, ()),
        ({"method": "fedavg", "union__momentum": 0.5}, ("union.momentum",)),
        ({"method": "fedavg", "union__momentum": 0.5, "start__weights": "prior"}, ()),
        ({"method": "fedavg", "union__lr": 0.5, "start__weights": "prior"}, ("union.lr",)),
        ({"method": "feddm", "client__epochs": 9, "client__augment": "flip"}, ("client.epochs",)),
        ({"method": "dynafed", "prior__chunk": 3}, ()),
        ({"method": "ccvr", "prior__chunk": 3}, ("prior.chunk",)),
        ({"method": "ccvr", "server__fidelity_data": "/x"}, ("server.fidelity-data",)),
        ({"method": "feddm", "server__fidelity_data": "/x"}, ()),
    ],
)
def test_what_a_method_does_not_read_is_named(said, idle):
    assert build(**said).unread() == idle


@pytest.mark.parametrize("method", ["fedavg", "krum", "fednova", "feddm"])
def test_a_robust_mean_is_refused_where_the_method_takes_none(method):
    said = complaint({"method": method, "server.aggregate": "median"})
    assert "server.aggregate = 'median' needs a method whose server takes a mean" in said
    assert (
        f"(feddgm, scaffold, feddf, dense, coboosting, dynafed, moon, ccvr), got '{method}'" in said
    )
