"""What a page's address asks for, and the addresses of other pages: the state of a page is its URL.

All addresses are relative, so that a page works below any prefix of a proxy.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from urllib.parse import urlencode

from flwr_dashboard import words

MAX_RUNS = 8
"""Runs compared at once."""
AXES = ("round", "bytes", "seconds")


@dataclass(frozen=True)
class Ask:
    """A page and its choices.

    Attributes
    ----------
    round
        The round whose images or bars are shown; None for the newest.
    client, label
        What was clicked; empty and -1 for nothing.
    first
        Place of the first client shown, of many.
    changed
        Whether images are shown as the difference to the round before.
    static
        Whether the page becomes a file, without links or polling.
    """

    page: str
    ids: tuple[str, ...] = ()
    round: int | None = None
    client: str = ""
    label: int = -1
    axis: str = "round"
    first: int = 0
    changed: bool = False
    find: str = ""
    static: bool = False

    @property
    def id(self) -> str:
        """The run, or the first of several."""
        return self.ids[0] if self.ids else ""

    def link(self, page: str | None = None, /, **changes: object) -> str:
        """Return the address of ``page``, or of this one, with other choices."""
        there = replace(self, page=page or self.page, **changes)  # type: ignore[arg-type]
        return "" if self.static else f"{there.page}?{urlencode(there.pairs())}"

    def to(self, page: str) -> str:
        """Return the address of another page of the same run, without this one's choices."""
        return Ask(page, self.ids[:1], static=self.static).link()

    def pairs(self) -> list[tuple[str, str]]:
        """Return what has been chosen, as pairs of a query."""
        said = [("id", name) for name in self.ids]
        if self.round is not None:
            said.append(("round", str(self.round)))
        if self.client:
            said.append(("client", self.client))
        if self.label >= 0:
            said.append(("class", str(self.label)))
        if self.axis != "round":
            said.append(("x", self.axis))
        if self.first:
            said.append(("first", str(self.first)))
        if self.changed:
            said.append(("changed", "1"))
        if self.find:
            said.append(("find", self.find))
        return said


def read(page: str, query: Mapping[str, str], ids: Sequence[str]) -> Ask:
    """Return what a query asks; what makes no sense counts as not said."""
    axis = query.get("x", "")
    return Ask(
        page,
        tuple(dict.fromkeys(ids))[:MAX_RUNS],
        round=_count(query.get("round", "")),
        client=words.clean(query.get("client", ""), 40),
        label=-1 if (label := _count(query.get("class", ""))) is None else label,
        axis=axis if axis in AXES else "round",
        first=_count(query.get("first", "")) or 0,
        changed=query.get("changed") == "1",
        find=words.clean(query.get("find", ""), 80),
    )


def _count(said: str) -> int | None:
    return int(said) if said.isascii() and said.isdigit() and len(said) < 10 else None
