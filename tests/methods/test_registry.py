"""Laws of the registry: a new method is one file and one line."""

import sys
from importlib import import_module

import pytest
import torch
from inprocess_run import power_cut, run, same_models, spoil

from feddgm_flwr import config, methods
from feddgm_flwr.methods.halves import ClientHalf, Method, method_of

SHRINK = '''
"""Shrinks clients' weights, the more the worse they fare: it sends down, up, and remembers."""

from dataclasses import dataclass, replace
from typing import ClassVar

from feddgm_flwr.core.params import weighted_mean
from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.core.state import Extra
from feddgm_flwr.core.training import Rule
from feddgm_flwr.methods.halves import ClientHalf, Method, ServerHalf


@dataclass(frozen=True, kw_only=True)
class ShrinkConfig(Settings):
    """Shrink."""

    section: ClassVar[str] = "shrink"

    pull: float = setting(0.01, "How much.", ge=0)


def _server(config, tools, emit):
    def advance(state, updates, population):
        mean = weighted_mean([u.params for u in updates], [1] * len(updates))
        losses = {u.partition_id: u.extra.numbers["loss"] for u in updates}
        memory = {"losses": {**state.memory.get("losses", {}), **losses}}
        number = state.server_round + 1
        return replace(state, server_round=number, surrogate=mean, memory=memory), None

    def down(state, partition_id):
        return Extra(numbers={"shrink": state.memory.get("losses", {}).get(partition_id, 0.5)})

    def wrong(extra, num_examples):
        return "" if set(extra.numbers) == {"loss"} else "it must send its loss"

    return ServerHalf(advance=advance, down=down, wrong=wrong)


def _client(config):
    def rule(task, data):
        strength = config.of_method(ShrinkConfig).pull * task.extra.numbers["shrink"]

        def adjust(parameters):
            for p in parameters:
                p.grad.add_(p.detach(), alpha=strength)

        return Rule(adjust)

    return ClientHalf(rule=rule, up=lambda task, walk, data: Extra(numbers={"loss": walk.loss}))


METHODS = {"shrink": Method(server=_server, client=_client, settings=(ShrinkConfig,))}
'''


@pytest.fixture
def shrink(tmp_path, monkeypatch):
    """Add the method ``shrink``: its file, and its line."""
    (tmp_path / "shrink_file.py").write_text(SHRINK)
    monkeypatch.setattr(methods, "__path__", [*methods.__path__, str(tmp_path)])
    monkeypatch.setitem(methods.MODULES, "shrink", "shrink_file")
    forget()
    yield "shrink"
    sys.modules.pop("feddgm_flwr.methods.shrink_file", None)
    forget()


def forget():
    """Let the declarations be gathered anew, as in a process that starts with the new line."""
    for kept in (config.settings, config.recipe_values, config.may_differ):
        kept.cache_clear()


@pytest.mark.parametrize("name", methods.names())
def test_every_method_has_both_halves(name):
    method = method_of(name)
    assert isinstance(method, Method)
    half = method.client(config.RunConfig(method=name))
    assert isinstance(half, ClientHalf)
    assert callable(method.server)
    assert method.makes_images is (name == "feddgm")


def test_a_methods_file_offers_just_the_names_that_lead_to_it():
    for file in set(methods.MODULES.values()):
        led = {name for name, to in methods.MODULES.items() if to == file}
        assert set(import_module(f"feddgm_flwr.methods.{file}").METHODS) == led


def test_every_section_of_a_method_is_configured():
    keys = config.settings()
    for section in methods.sections():
        assert any(key.startswith(f"{section.section}.") for key in keys)
    assert len(methods.sections()) == len({s.section for s in methods.sections()})


def test_a_new_method_is_one_file_and_one_line(shrink, tmp_path):
    heard = []

    def keep(message, reply):
        numbers = message.content["extra-numbers"]["shrink"], reply.content["extra-numbers"]["loss"]
        heard.append(numbers)
        return reply

    how = {"method": shrink, "clients": 2, "shrink__pull": 0.5}
    whole = run(tmp_path / "whole", tamper=spoil(keep), **how)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "parts", tamper=power_cut(2), **how)
    resumed = run(tmp_path / "parts", resume=True, order=3, **how)

    (first_down, first_up), (second_down, second_up) = heard
    assert first_down == 0.5
    assert second_down == first_up != second_up, "what went up comes down again"
    assert resumed.numbers() == whole.numbers()
    assert same_models(resumed.models, whole.models)
    assert whole.of("run-start")[0]["config"]["shrink.pull"] == 0.5

    free = run(tmp_path / "free", **how | {"shrink__pull": 0.0})
    assert not same_models(free.models, whole.models), "its rule is followed"
    norms = [
        sum(float(v.square().sum()) for v in e.models["surrogate"].values()) for e in (whole, free)
    ]
    assert norms[0] < norms[1]


def test_a_new_methods_own_screening_counts(shrink, tmp_path):
    def silent(message, reply):
        del reply.content["extra-numbers"]
        return reply

    ended = run(tmp_path / "run", method=shrink, num_server_rounds=1, tamper=spoil(silent))
    [rejected] = ended.of("client-rejected")
    assert rejected["reason"] == "it must send its loss"
    assert all(torch.isfinite(v).all() for v in ended.models["surrogate"].values())


def test_a_new_methods_settings_are_checked(shrink, tmp_path):
    with pytest.raises(ValueError, match=r"shrink.pull must be >= 0, got -1.0"):
        run(tmp_path / "run", method=shrink, shrink__pull=-1.0)
