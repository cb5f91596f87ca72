"""Configuration: a round trip from flat keys, and one clear sentence for every mistake."""

import dataclasses
import tomllib
from pathlib import Path
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from feddgm_flwr.config import (
    AUGMENTATIONS,
    AUTO,
    RECIPES,
    DataConfig,
    RunConfig,
    flat_keys,
)

KEYS = flat_keys(RunConfig)
ROOT = Path(__file__).parent.parent
AUGMENTS = st.lists(st.sampled_from(AUGMENTATIONS), unique=True).map("_".join)


def hints() -> dict[str, object]:
    """Return every flat key's type."""

    def walk(config_type: type, prefix: str = "") -> dict[str, object]:
        found: dict[str, object] = {}
        for name, hint in get_type_hints(config_type).items():
            if name not in {f.name for f in dataclasses.fields(config_type)}:
                continue
            key = prefix + name.replace("_", "-")
            nested = dataclasses.is_dataclass(hint)
            found |= walk(hint, key + ".") if nested else {key: hint}
        return found

    return walk(RunConfig)


HINTS = hints()

SPECIAL = {
    "data.channels": st.sampled_from([1, 3]),
    "data.image-size": st.integers(8, 1024),
    "data.class-names": st.just("cat,dog"),
    "surrogate.depth": st.integers(1, 8),
    "prior.image-scale": st.integers(1, 8),
    "prior.path": st.just("hub/id"),
    "global-model.names": st.sampled_from(["", "resnet18", "vit, convnet"]),
    "client.device": st.sampled_from(["auto", "cpu", "cuda:0"]),
    "server.device": st.sampled_from(["auto", "cpu", "cuda:0"]),
    "rounds.fraction-train": st.floats(0.01, 1.0),
    "robust.trim": st.floats(0.0, 0.49),
    "fedopt.momentum": st.floats(0.0, 0.99),
}


def value_of(key: str) -> st.SearchStrategy:
    """Return values that are in range for ``key``."""
    hint = HINTS[key]
    if key in SPECIAL:
        return SPECIAL[key]
    if key.endswith("augment"):
        return AUGMENTS
    if get_origin(hint) is Literal:
        return st.sampled_from(get_args(hint))
    if key.endswith("momentum"):
        return st.floats(0.0, 0.99)
    return {
        bool: st.booleans(),
        int: st.integers(1, 99),
        float: st.floats(0.001, 0.9),
        str: st.sampled_from(["", "/data/x", "a b"]),
    }[hint]


FLAT = st.fixed_dictionaries(
    # `folder` needs class names and `autoencoder` a path, so both are always said.
    {"data.class-names": st.just("cat,dog"), "prior.path": st.just("hub/id")},
    optional={k: value_of(k) for k in KEYS if k not in ("data.class-names", "prior.path")},
)


def build(**said) -> RunConfig:
    return RunConfig.from_run_config(
        {k.replace("__", ".").replace("_", "-"): v for k, v in said.items()}
    )


@settings(deadline=None)
@given(FLAT)
def test_what_was_said_is_what_is_read_and_a_round_trip_changes_nothing(flat):
    config = RunConfig.from_run_config(flat)
    resolved = config.flat()
    assert {k: resolved[k] for k in flat} == flat
    assert RunConfig.from_run_config(resolved) == config
    assert list(resolved) == list(KEYS)


def test_nothing_said_is_every_default():
    assert RunConfig.from_run_config({}) == RunConfig()


@pytest.mark.parametrize("recipe", RECIPES)
def test_auto_is_what_the_recipe_says_and_the_default_where_it_says_nothing(recipe):
    auto = {k: AUTO for k in KEYS if k != "recipe"}
    resolved = RunConfig.from_run_config({**auto, "recipe": recipe}).flat()
    default = RunConfig().flat()
    expected = {**default, **RECIPES[recipe], "recipe": recipe}
    assert resolved == expected


def test_what_is_said_beats_the_recipe():
    config = build(recipe="paper", client__epochs=2, client__lr="auto")
    assert (config.client.epochs, config.client.lr) == (2, RECIPES["paper"]["client.lr"])


def test_recipes_name_known_keys_and_valid_values():
    for recipe, says in RECIPES.items():
        assert set(says) <= set(KEYS)
        assert RunConfig.from_run_config({**says, "recipe": recipe}).recipe == recipe


@pytest.mark.parametrize("key", ["distill.iteration", "distill_iterations", "lr", ""])
def test_unknown_keys_are_refused_by_name(key):
    with pytest.raises(ValueError, match=rf"unknown run-config keys \['{key}'\]"):
        RunConfig.from_run_config({key: 1})


@pytest.mark.parametrize(
    "key", [k for k, h in HINTS.items() if get_origin(h) is not Literal and h is not str]
)
def test_a_value_of_the_wrong_type_is_refused_with_key_value_and_type(key):
    wrong = {bool: 1, int: True, float: "0.1"}[HINTS[key]]
    with pytest.raises(TypeError) as caught:
        RunConfig.from_run_config({key: wrong})
    said = str(caught.value)
    assert said.startswith(f"{key} must be {HINTS[key].__name__}, got {wrong!r}")
    assert "-c" in said


@pytest.mark.parametrize("key", [k for k, h in HINTS.items() if h is int])
def test_a_fraction_is_no_count(key):
    with pytest.raises(TypeError, match=f"{key} must be int"):
        RunConfig.from_run_config({key: 1.5})


def test_a_whole_number_serves_where_a_fraction_may_stand():
    rate = build(client__lr=1).client.lr
    assert (rate, type(rate)) == (1.0, float)


@pytest.mark.parametrize("key", [k for k, h in HINTS.items() if get_origin(h) is Literal])
def test_a_word_that_is_none_of_the_choices_is_refused_with_them(key):
    with pytest.raises(ValueError, match=rf"{key} must be one of \(.*got 'neither'"):
        RunConfig.from_run_config({key: "neither"})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num-server-rounds", 0),
        ("seed", -1),
        ("data.alpha", 0.0),
        ("data.min-examples", 0),
        ("data.classes-per-client", 0),
        ("data.channels", 2),
        ("data.image-size", 7),
        ("client.epochs", -1),
        ("client.lr", 0.0),
        ("client.momentum", 1.0),
        ("client.weight-decay", -0.1),
        ("client.batch-size", 0),
        ("client.augment", "color_blur"),
        ("client.augment", "color__flip"),
        ("client.threads", 0),
        ("surrogate.depth", 0),
        ("surrogate.depth", 9),
        ("surrogate.width", 0),
        ("global-model.lr", -1.0),
        ("global-model.names", "resnet18,resnet50"),
        ("prior.feature-block", -1),
        ("prior.image-scale", 9),
        ("prior.chunk", 0),
        ("distill.images-per-class", 0),
        ("distill.student-steps", 0),
        ("distill.iterations", -1),
        ("distill.latent-lr", -0.1),
        ("distill.student-lr", 0.0),
        ("distill.momentum", 1.0),
        ("union.replay-rounds", 0),
        ("distill.augment", "flips"),
        ("rounds.fraction-train", 0.0),
        ("rounds.fraction-train", 1.1),
        ("rounds.min-clients", 0),
        ("union.prior-images-per-class", -1),
        ("rounds.node-wait-s", 0.0),
        ("rounds.timeout-s", -1.0),
        ("fedprox.mu", -0.1),
        ("fedopt.lr", -1.0),
    ],
)
def test_a_value_out_of_range_is_refused_with_key_value_and_remedy(key, value):
    with pytest.raises(ValueError, match=f"{key} must be ") as caught:
        RunConfig.from_run_config({key: value})
    said = str(caught.value)
    assert said.startswith(f"{key} must be ")
    assert ("resnet50" if key == "global-model.names" else repr(value)) in said
    assert said.endswith("change it with -c")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("key", ["client.lr", "data.alpha", "distill.student-lr"])
def test_a_rate_that_is_no_number_is_refused(key, value):
    with pytest.raises(ValueError, match=f"{key} must be a finite number, got {value}"):
        RunConfig.from_run_config({key: value})


def test_own_data_need_class_names_and_an_autoencoder_needs_a_path():
    for name in ("folder", "npz"):
        with pytest.raises(ValueError, match=r"data\.class-names must be"):
            build(data__name=name)
    with pytest.raises(ValueError, match=r"generator\.path must be"):
        build(prior__kind="autoencoder")


def test_class_names_and_model_names_are_parsed_in_one_place():
    assert DataConfig(class_names=" cat, dog ,,").class_list == ("cat", "dog")
    names = build(global_model__names="vit, resnet18,vit").global_model.name_list
    assert names == ("vit", "resnet18")


def test_every_setting_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        RunConfig().client.lr = 1.0


def app_config() -> dict[str, object]:
    text = (ROOT / "pyproject.toml").read_text()
    nested = tomllib.loads(text)["tool"]["flwr"]["app"]["config"]
    flat: dict[str, object] = {}
    for key, value in nested.items():
        if isinstance(value, dict):
            flat |= {f"{key}.{k}": v for k, v in value.items()}
        else:
            flat[key] = value
    return flat


def test_pyproject_names_exactly_the_known_keys():
    assert sorted(app_config()) == sorted(KEYS)


def test_pyproject_says_auto_or_the_dataclass_default():
    default = RunConfig().flat()
    said = {k: v for k, v in app_config().items() if v != AUTO}
    assert said == {k: default[k] for k in said}
    assert {k: type(v) for k, v in said.items()} == {k: type(default[k]) for k in said}


def test_whatever_a_recipe_sets_is_auto_in_pyproject():
    # Otherwise the defaults there would overrule the recipe.
    said = app_config()
    set_by_recipes = {key for says in RECIPES.values() for key in says}
    assert {k for k in set_by_recipes if said[k] != AUTO} == set()


def test_pyproject_alone_gives_the_default_run():
    assert RunConfig.from_run_config(app_config()) == RunConfig()


@pytest.mark.parametrize("file", sorted((ROOT / "conf").glob("*.toml")), ids=lambda f: f.stem)
def test_every_experiment_file_is_a_valid_run(file):
    said = tomllib.loads(file.read_text())
    flat: dict[str, object] = {}
    for key, value in said.items():
        nested = isinstance(value, dict)
        flat |= {f"{key}.{k}": v for k, v in value.items()} if nested else {key: value}
    # What a file leaves to its user: where an autoencoder lies on this machine.
    if flat.get("prior.kind") == "autoencoder":
        flat.setdefault("prior.path", "/path/to/autoencoder")
    RunConfig.from_run_config({**app_config(), **flat})
