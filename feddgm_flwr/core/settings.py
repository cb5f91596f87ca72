"""A setting is declared once, beside what it configures.

``setting`` gives a dataclass field its default, meaning, range, its value under
``recipe = "paper"`` and whether a resumed run may change it; ``Settings`` checks the ranges where a
value enters. Error texts, docs/config.md, the resume check and the recipes all read these
declarations (``feddgm_flwr.config``). Knows no section by name, no file and no Flower.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeVar, get_args, get_origin, get_type_hints

Scalar = bool | int | float | str
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Words:
    """Which strings a setting takes, where a list of choices does not say it.

    Attributes
    ----------
    fit
        Whether a value is allowed.
    expected
        The same for people.
    """

    fit: Callable[[str], bool]
    expected: str


@dataclass(frozen=True, kw_only=True)
class About:
    """What is said of a setting beside its type and default.

    Attributes
    ----------
    ge, gt, le, lt
        Bounds of a number.
    words
        Bounds of a string.
    paper
        Its value under ``recipe = "paper"``, if other than the default.
    may_differ
        Whether a resumed run may change it: it says where, how fast or what to report, never what
        is computed.
    only
        Field of the same section -> the values under which this one is read at all.
    """

    meaning: str
    ge: float | int | None = None
    gt: float | int | None = None
    le: float | int | None = None
    lt: float | int | None = None
    words: Words | None = None
    paper: Any = None
    may_differ: bool = False
    only: Mapping[str, tuple[Scalar, ...]] = dataclasses.field(default_factory=dict)

    def allows(self, value: Scalar) -> bool:
        """Whether ``value`` is within the bounds."""
        if isinstance(value, str):
            return self.words is None or self.words.fit(value)
        return _finite(value) and not (
            (self.ge is not None and value < self.ge)
            or (self.gt is not None and value <= self.gt)
            or (self.le is not None and value > self.le)
            or (self.lt is not None and value >= self.lt)
        )

    @property
    def expected(self) -> str:
        """The bounds in words; "" without any."""
        if self.words is not None:
            return self.words.expected
        sides = {">=": self.ge, "greater than": self.gt, "<=": self.le, "less than": self.lt}
        said = [f"{words} {bound:g}" for words, bound in sides.items() if bound is not None]
        if len(said) < 2:
            return "".join(said)
        low = f"[{self.ge:g}" if self.ge is not None else f"({self.gt:g}"
        high = f"{self.le:g}]" if self.le is not None else f"{self.lt:g})"
        return f"in {low}, {high}"


def _finite(value: Scalar) -> bool:
    # Asked of no int: one beyond every float is finite, and would be an OverflowError.
    return not isinstance(value, float) or math.isfinite(value)


def setting(
    default: T,
    meaning: str,
    *,
    ge: float | int | None = None,
    gt: float | int | None = None,
    le: float | int | None = None,
    lt: float | int | None = None,
    words: Words | None = None,
    paper: T | None = None,
    may_differ: bool = False,
    only: Mapping[str, tuple[Scalar, ...]] | None = None,
) -> T:
    """Declare a field of ``Settings``; see ``About``."""
    about = About(
        meaning=meaning,
        ge=ge,
        gt=gt,
        le=le,
        lt=lt,
        words=words,
        paper=paper,
        may_differ=may_differ,
        only=only or {},
    )
    field: T = dataclasses.field(default=default, metadata={"about": about})
    return field


@dataclass(frozen=True, kw_only=True)
class Settings:
    """A section of the configuration: frozen, and within its bounds from the start.

    Raises
    ------
    ValueError
        A value out of bounds, or not finite.
    """

    section: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for name, about in about_of(type(self)).items():
            value = getattr(self, name)
            # Of infinity, ">= 0" would say nothing.
            expected = about.expected if _finite(value) else "a finite number"
            check(about.allows(value), key_of(type(self), name), value, expected)


def check(ok: bool, key: str, value: object, expected: str) -> None:
    """Raise a sentence with key, value, expectation and remedy unless ``ok``."""
    if not ok:
        raise ValueError(f"{key} must be {expected}, got {value!r}; change it with -c")


def key_of(section: type[Settings], name: str) -> str:
    """Return the dotted kebab-case key of a section's field."""
    prefix = f"{section.section}." if section.section else ""
    return prefix + name.replace("_", "-")


def typed(key: str, value: Scalar, hint: Any) -> Scalar:  # noqa: ANN401
    """Return ``value`` as ``hint`` asks; an int is accepted for a float, nothing else bends.

    Raises
    ------
    TypeError
        Another type.
    ValueError
        Not one of the choices.
    """
    if get_origin(hint) is Literal:
        check(value in get_args(hint), key, value, f"one of {get_args(hint)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    fits: bool = type(value) is hint
    if fits:
        return value
    raise TypeError(
        f"{key} must be {hint.__name__}, got {value!r} ({type(value).__name__}); change it with -c"
    )


def about_of(section: type[Settings]) -> Mapping[str, About]:
    """Return what is said of each setting of ``section``, by field name, in their order."""
    # A field of which nothing is said is a section within the section.
    own = {f.name: f.metadata.get("about") for f in dataclasses.fields(section)}
    return {name: about for name, about in own.items() if about is not None}


def hints_of(section: type[Settings]) -> Mapping[str, Any]:
    """Return the type of each field."""
    return get_type_hints(section)


def restated(
    base: type[Settings],
    name: str,
    default: T,
    *,
    meaning: str = "",
    paper: T | None = None,
    only: Mapping[str, tuple[Scalar, ...]] | None = None,
) -> T:
    """Declare a field that ``base`` has anew: the same bounds, another default.

    Its value under the paper's recipe is not ``base``'s; its meaning, and what it is read under,
    are, unless said.
    """
    about = about_of(base)[name]
    about = dataclasses.replace(
        about,
        meaning=meaning or about.meaning,
        paper=paper,
        only=about.only if only is None else only,
    )
    field: T = dataclasses.field(default=default, metadata={"about": about})
    return field
