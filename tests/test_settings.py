"""A declaration of a setting: its bounds, what they are called, and when they are checked."""

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.local import ClientConfig
from feddgm_flwr.core.models import SurrogateConfig
from feddgm_flwr.core.settings import (
    About,
    Settings,
    Words,
    about_of,
    check,
    hints_of,
    key_of,
    restated,
    setting,
    typed,
)
from feddgm_flwr.core.training import TrainConfig

EVEN = Words(fit=lambda word: len(word) % 2 == 0, expected="of even length")


@dataclass(frozen=True, kw_only=True)
class Inner(Settings):
    section: ClassVar[str] = "inner-part"

    big_step: float = setting(
        0.5, "A step.", gt=0, le=1, paper=0.25, may_differ=True, only={"on": (True,)}
    )
    on: bool = setting(False, "Whether.")


@dataclass(frozen=True, kw_only=True)
class Outer(Settings):
    count: int = setting(1, "How many.", ge=1)
    word: str = setting("ab", "Which.", words=EVEN)
    inner: Inner = dataclasses.field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Further(Inner):
    section: ClassVar[str] = "further"

    big_step: float = restated(Inner, "big_step", 0.75)
    on: bool = restated(Inner, "on", True, meaning="Whether or not.", paper=False)


@pytest.mark.parametrize(
    ("bounds", "inside", "outside", "expected"),
    [
        ({}, (-1e300, 0, 1e300), (), ""),
        ({"ge": 1}, (1, 2), (0, -1), ">= 1"),
        ({"gt": 0}, (1e-300, 2), (0, -1), "greater than 0"),
        ({"le": 8}, (8, -9), (9,), "<= 8"),
        ({"lt": 0.5}, (0.49, -9), (0.5, 1), "less than 0.5"),
        ({"ge": 1, "le": 8}, (1, 8), (0, 9), "in [1, 8]"),
        ({"ge": 0, "lt": 1}, (0, 0.99), (-0.1, 1), "in [0, 1)"),
        ({"gt": 0, "le": 1}, (0.01, 1), (0, 1.01), "in (0, 1]"),
        ({"gt": 0, "lt": 0.5}, (0.01, 0.49), (0, 0.5), "in (0, 0.5)"),
    ],
)
def test_bounds_say_what_they_allow(bounds, inside, outside, expected):
    about = About(meaning="", **bounds)
    assert about.expected == expected
    assert [v for v in inside if not about.allows(v)] == []
    assert [v for v in outside if about.allows(v)] == []
    assert not any(about.allows(v) for v in (math.nan, math.inf, -math.inf))


@given(st.floats(-1e9, 1e9), st.floats(-1e9, 1e9), st.floats(-1e9, 1e9))
def test_an_interval_is_its_two_bounds_together(low, high, value):
    both = About(meaning="", ge=low, lt=high)
    apart = (About(meaning="", ge=low), About(meaning="", lt=high))
    assert both.allows(value) == all(about.allows(value) for about in apart)


def test_a_number_beyond_every_float_is_compared_like_another():
    assert About(meaning="", ge=0).allows(10**400)
    assert not About(meaning="", le=1).allows(10**400)


def test_words_are_bounded_by_their_own_rule():
    about = About(meaning="", words=EVEN)
    assert about.expected == "of even length"
    assert (about.allows("ab"), about.allows("abc")) == (True, False)
    assert About(meaning="").allows("anything")


def test_a_setting_is_a_field_with_its_default_and_all_that_was_said_of_it():
    assert Inner() == Inner(big_step=0.5, on=False)
    assert about_of(Inner) == {
        "big_step": About(
            meaning="A step.", gt=0, le=1, paper=0.25, may_differ=True, only={"on": (True,)}
        ),
        "on": About(meaning="Whether."),
    }
    assert hints_of(Outer) == {
        **{"section": ClassVar[str], "count": int, "word": str},
        "inner": Inner,
    }


def test_a_section_within_a_section_is_no_setting():
    assert list(about_of(Outer)) == ["count", "word"]


def test_a_restated_setting_keeps_its_bounds_and_its_meaning_unless_said():
    ours, theirs = about_of(Further), about_of(Inner)
    assert Further().big_step == 0.75
    assert ours["big_step"] == dataclasses.replace(theirs["big_step"], paper=None)
    assert ours["on"] == About(meaning="Whether or not.", paper=False)
    assert theirs["on"] == About(meaning="Whether.")
    with pytest.raises(ValueError, match=r"further\.big-step must be in \(0, 1\], got 2\.0"):
        Further(big_step=2.0)


def test_keys_are_dotted_and_kebab_case():
    assert key_of(Inner, "big_step") == "inner-part.big-step"
    assert key_of(Outer, "count") == "count"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Outer(count=0), "count must be >= 1, got 0; change it with -c"),
        (lambda: Outer(word="abc"), "word must be of even length, got 'abc'; change it with -c"),
        (
            lambda: Inner(big_step=math.inf),
            "inner-part.big-step must be a finite number, got inf; change it with -c",
        ),
        (
            lambda: dataclasses.replace(Inner(), big_step=0.0),
            "inner-part.big-step must be in (0, 1], got 0.0; change it with -c",
        ),
        (
            lambda: DistillConfig(iterations=-1),
            "distill.iterations must be >= 0, got -1; change it with -c",
        ),
        (
            lambda: SurrogateConfig(depth=9),
            "surrogate.depth must be in [1, 8], got 9; change it with -c",
        ),
        (
            lambda: ClientConfig(momentum=1.0),
            "client.momentum must be in [0, 1), got 1.0; change it with -c",
        ),
        (lambda: TrainConfig(lr=0.0), "lr must be greater than 0, got 0.0; change it with -c"),
        (
            lambda: ClientConfig(augment="blur"),
            "client.augment must be \"\" or names of ('color', 'crop', 'cutout', 'flip', "
            "'rotate', 'scale') joined by '_', after 'one:' or not, got 'blur'; change it with -c",
        ),
    ],
)
def test_bounds_hold_however_a_section_is_made(make, said):
    with pytest.raises(ValueError, match="must be") as caught:
        make()
    assert str(caught.value) == said


def test_check_is_silent_where_all_is_well():
    check(True, "key", 1, "anything")
    with pytest.raises(ValueError, match=r"^key must be more, got 1; change it with -c$"):
        check(False, "key", 1, "more")


@pytest.mark.parametrize(
    ("value", "hint", "read"),
    [
        (True, bool, True),
        (3, int, 3),
        (3, float, 3.0),
        (0.5, float, 0.5),
        ("", str, ""),
        ("b", Literal["a", "b"], "b"),
    ],
)
def test_a_fitting_value_is_read_and_a_whole_number_serves_as_a_fraction(value, hint, read):
    found = typed("key", value, hint)
    assert (found, type(found)) == (read, type(read))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        *[(1, bool), ("true", bool), (True, int), (1.0, int), ("1", int)],
        *[(True, float), ("0.1", float), (1, str), (False, str)],
    ],
)
def test_no_other_type_bends(value, hint):
    said = rf"^key must be {hint.__name__}, got {value!r} \({type(value).__name__}\); change"
    with pytest.raises(TypeError, match=said):
        typed("key", value, hint)


@pytest.mark.parametrize("value", ["c", "", "A", 1, True])
def test_what_is_no_choice_is_refused_with_the_choices(value):
    with pytest.raises(ValueError, match=rf"key must be one of \('a', 'b'\), got {value!r}"):
        typed("key", value, Literal["a", "b"])
