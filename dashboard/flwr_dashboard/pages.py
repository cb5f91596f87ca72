"""The pages: which parts each has, and each part as HTML.

A page is made of parts, each with a stamp of its content, so that a tab asks only for what has
changed. Every text is escaped by the templates; charts come whole from ``svg``.
"""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from flwr_dashboard import compare, gallery, svg, views, words
from flwr_dashboard.ask import Ask
from flwr_dashboard.pictures import drawn_rounds
from flwr_dashboard.runs import Library, Opened, Summary, alive
from flwr_dashboard.state import Run, Standing, standing

TITLES = {
    "run": "Run",
    "federation": "Federation",
    "images": "Images",
    "time": "Time",
    "config": "Config",
    "log": "Log",
}
"""Pages of one run, in the order of their tabs."""

LISTED = 100
"""Runs on one page of the list."""

environment = Environment(
    loader=PackageLoader("flwr_dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.filters["svg"] = Markup
environment.globals.update(
    percent=words.percent, duration=words.duration, GLYPHS=views.GLYPHS, sparkline=svg.sparkline
)


@dataclass(frozen=True)
class Part:
    """A part of a page: its name, how it is placed, its HTML; empty where nothing is to be said."""

    name: str
    place: str
    html: str

    @property
    def stamp(self) -> str:
        """What changes when the part does."""
        return hashlib.blake2b(self.html.encode(), digest_size=6).hexdigest()


@dataclass(frozen=True)
class Scene:
    """All that the parts of a run's page are made from."""

    ask: Ask
    opened: Opened
    stands: Standing
    colour: int
    now: float

    @property
    def run(self) -> Run:
        """The run."""
        return self.opened.run


def scene(library: Library, ask: Ask, now: float) -> Scene | None:
    """Return what the page of a run shows; None if there is no such run."""
    opened = library.open(ask.id)
    if opened is None:
        return None
    stands = standing(opened.run, now, alive=alive(opened.run))
    return Scene(ask, opened, stands, library.order(ask.id), now)


def _fill(name: str, **given: object) -> str:
    return environment.get_template(f"{name}.html").render(given).strip()


def _state(s: Scene) -> str:
    return _fill("state", stands=s.stands, now=views.present(s.run) if _lives(s) else "")


def _lives(s: Scene) -> bool:
    return s.stands.key in ("running", "waiting")


def _meta(s: Scene) -> str:
    run, data = s.run, s.run.setting("data.name")
    about = [run.method, f"on {data}" if data else ""]
    if run.setting("data.partition") == "dirichlet" and "data.alpha" in run.given:
        about.append(f"Dirichlet α = {run.setting('data.alpha')}")
    about.append(f"seed {run.seed}" if run.seed else "")
    about.append(run.machine.get("host", "") and f"on {run.machine['host']}")
    tail = s.opened.tail
    notes = [tail.missing] if tail.missing else []
    if tail.behind:
        notes.append(f"Reading the log: {100 * tail.offset // max(tail.size, 1)} %.")
    if tail.broken:
        lines = "line" if tail.broken == 1 else "lines"
        notes.append(f"{tail.broken} {lines} of the log left out: no events.")
    if run.left_out:
        notes.append(f"Not shown: {'; '.join(sorted(run.left_out))}.")
    last = views.clock(run.last, date=True) if run.last is not None else ""
    return _fill("meta", about=[a for a in about if a], last=last, notes=notes)


def _banner(s: Scene) -> str:
    faults = [(views.clock(moment), said) for moment, said in list(s.run.faults)[::-1]]
    nodes = list(s.run.nodes_left_out.items())[:5]
    return _fill("banner", stands=s.stands, faults=faults, nodes=nodes, log=s.ask.to("log"))


def _tiles(s: Scene) -> str:
    return _fill("tiles", tiles=views.tiles(s.run, s.stands, s.now))


def _accuracy(s: Scene) -> str:
    axes = [
        (axis, s.ask.link(axis=axis), axis == s.ask.axis) for axis in ("round", "bytes", "seconds")
    ]
    chart = views.accuracy(s.run, s.ask.axis, s.colour)
    return _fill("accuracy", chart=chart, axes=[] if s.ask.static else axes)


def _clients(s: Scene) -> str:
    run, ask = s.run, s.ask
    clients = views.clients_in_order(run)
    few = len(clients) <= views.MAX_ROWS
    page = clients[ask.first : ask.first + views.MAX_MATRIX]
    chosen = run.clients.get(ask.client)
    rows = [views.row(run, c, ask) for c in (clients if few else [chosen] if chosen else [])]
    classes = list(run.classes[: views.MAX_COLUMNS])
    shared = any(c.counts for c in clients)
    return _fill(
        "clients",
        rows=rows,
        squares=[] if few else views.squares(page, replace(ask, page="federation")),
        classes=classes,
        shared=shared,
        tally=views.tally(run),
        round=run.round,
        chosen=ask.client,
        total=len(clients),
        pages=_pages(ask, len(clients), views.MAX_MATRIX),
        details=ask.page == "federation",
        examples=ask.page == "federation" or ask.static,
    )


def _pages(ask: Ask, total: int, each: int) -> list[tuple[str, str, bool]]:
    """Return links to the pages of many clients: words, address, whether it is this one."""
    if total <= each or ask.static:
        return []
    starts = range(0, total, each)
    return [
        (f"{first + 1}–{min(first + each, total)}", ask.link(first=first), first == ask.first)
        for first in starts[:50]
    ]


def _replies(s: Scene) -> str:
    return _fill("replies", chart=views.replies(s.run, s.ask.first), tally=s.run.set_aside())


def _images(s: Scene) -> str:
    glance = s.ask.page == "run"
    grid = gallery.grid(s.run, s.ask, most=gallery.GLANCED if glance else views.MAX_ROWS)
    strips, sheets = gallery.strips(s.run, s.ask)
    if grid is None:
        return _fill("noimages")
    known = {sheet.name for sheet in grid.sheets}
    sheets = [*grid.sheets, *(sheet for sheet in sheets if sheet.name not in known)]
    pages = [] if glance else _pages(s.ask, grid.clients, views.MAX_ROWS)
    return _fill(
        "images", grid=grid, strips=strips, sheets=sheets, pages=pages, chosen=s.ask,
        every=s.ask.to("images") if grid.clients > len(grid.rows) and glance else "",
    )  # fmt: skip


def _growing(s: Scene) -> str:
    number, moments, clients, sheets = gallery.growing(s.run, s.ask)
    given = {"round": number, "moments": moments, "clients": clients, "sheets": sheets}
    return _fill("growing", **given) if clients else ""


def _detail(s: Scene) -> str:
    detail = gallery.detail(s.run, s.ask)
    return _fill("detail", detail=detail) if detail else ""


def _newest(s: Scene) -> str:
    drawn = drawn_rounds(s.run)
    return f"{drawn[0]} {drawn[-1]}" if drawn else ""


def _time(s: Scene) -> str:
    glance = s.ask.page == "run" and not s.ask.static
    most = svg.FEW_BARS if glance else views.MAX_BARS
    until = s.now if _lives(s) else (s.run.last or 0.0)
    return _fill(
        "time",
        chart=views.rounds_by_phase(s.run, s.ask, until, most=most),
        phases=views.phases_present(s.run),
        left_out=max(len(views.timed(s.run)) - most, 0),
        every=s.ask.to("time") if glance else "",
    )


def _time_clients(s: Scene) -> str:
    number = s.ask.round if s.ask.round is not None else s.run.round
    total = len(s.run.rounds[number].parts) if number in s.run.rounds else 0
    chart = views.clients_of_round(s.run, number, s.ask.first)
    pages = _pages(s.ask, total, views.MAX_BARS)
    return _fill("timeclients", chart=chart, round=number, pages=pages)


def _config(s: Scene) -> str:
    run = s.run
    return _fill(
        "config",
        groups=views.settings(run),
        known=bool(run.said),
        lines=views.run_config(run),
        versions=run.versions,
        machine=run.machine,
        load=run.load,
        flower_run=run.flower_run,
    )


def _log(s: Scene) -> str:
    warnings, latest = views.said(s.run.warnings), views.said(s.run.latest)
    return _fill("log", warnings=warnings[:50], latest=latest, total=s.run.events)


def _downloads(s: Scene) -> str:
    files = [
        ("events.jsonl", "every event as it was written"),
        ("rounds.csv", "a line a round"),
        ("clients.csv", "a line a client and round"),
        ("run.json", "all that is shown here"),
        ("report.html", "this run in one file"),
    ]
    links = [(name, said, s.ask.to(f"download/{name}")) for name, said in files]
    return _fill("downloads", links=links)


HEAD: Sequence[tuple[str, str, Callable[[Scene], str]]] = (
    ("state", "state", _state),
    ("meta", "meta", _meta),
)
PARTS: Mapping[str, Sequence[tuple[str, str, Callable[[Scene], str]]]] = {
    "run": (
        ("banner", "wide", _banner),
        ("tiles", "wide", _tiles),
        ("accuracy", "card half", _accuracy),
        ("clients", "card half", _clients),
        ("images", "card wide", _images),
        ("time", "card wide", _time),
    ),
    "federation": (("clients", "card wide", _clients), ("replies", "card wide", _replies)),
    "images": (
        ("images", "card wide", _images),
        ("detail", "card wide", _detail),
        ("growing", "card wide", _growing),
    ),
    "time": (("time", "card wide", _time), ("timeclients", "card wide", _time_clients)),
    "config": (("config", "card wide", _config),),
    "log": (("downloads", "card wide", _downloads), ("log", "card wide", _log)),
}
"""Page -> its parts: name, place, and what fills it."""


def parts(s: Scene) -> list[Part]:
    """Return the parts of a run's page."""
    made = [Part(name, place, make(s)) for name, place, make in (*HEAD, *PARTS[s.ask.page])]
    return (
        [*made, Part("newest", "hidden", _newest(s))] if s.ask.page in ("run", "images") else made
    )


def list_parts(library: Library, ask: Ask, now: float) -> list[Part]:
    """Return the parts of the list of runs; only those on this page are looked into."""
    wanted = ask.find.lower().split()
    rows = places = library.places()
    if wanted:
        rows = [p for p in places if _fits(library.summary(p, now), wanted)]
    lines = [_run_line(library.summary(p, now), now) for p in rows[ask.first : ask.first + LISTED]]
    pages = _pages(ask, len(rows), LISTED)
    html = _fill(
        "runs", rows=lines, pages=pages, total=len(places), found=len(rows), chosen=set(ask.ids)
    )
    return [Part("runs", "card wide", html)]


def _fits(s: Summary, wanted: Sequence[str]) -> bool:
    data = s.run.setting("data.name")
    facts = (s.id, s.run.method, s.standing.word, data, f"seed={s.run.seed}")
    haystack = " ".join(facts).lower()
    return all(word in haystack for word in wanted)


def _run_line(s: Summary, now: float) -> dict[str, object]:
    run = s.run
    skewed = run.setting("data.partition") == "dirichlet"
    values = [a for _, a in s.curve]
    best = s.best
    title = f"Accuracy of {s.id}, at last {words.percent(values[-1])}" if values else ""
    # The rounds before the present one are done, though the log's ends may not say so.
    done = max([n for n, r in run.rounds.items() if r.ended], default=0)
    done = max(done, run.round - 1)
    return {
        "id": s.id,
        "link": Ask("run", (s.id,)).link(),
        "stands": s.standing,
        "method": run.method or "–",
        "data": run.setting("data.name") or "–",
        "alpha": (skewed and run.setting("data.alpha")) or "–",
        "seed": run.seed or "–",
        "spark": svg.sparkline(values, title=title, colour=s.order),
        "best": ("≥ " if s.partial and best is not None else "") + words.percent(best),
        "round": f"{done} of {run.rounds_planned or '?'}",
        "faults": f"{len(run.faults)}{'+' if run.left_out else ''}" if run.faults else "–",
        "age": words.ago(now - s.changed),
    }


def compare_parts(library: Library, ask: Ask, now: float) -> list[Part]:
    """Return the parts of the comparison of several runs."""
    opened = [o for o in (library.open(run_id) for run_id in ask.ids) if o]
    runs = [compare.Compared(o.id, o.run, library.order(o.id)) for o in opened]
    if len(runs) < 2:
        return [Part("compare", "card wide", _fill("nocompare"))]
    names = [
        (words.clean(c.id, 40), svg.classes(c.colour), Ask("run", (c.id,)).link()) for c in runs
    ]
    grids = []
    for order, c in enumerate(runs):
        single = replace(ask, ids=(c.id,), page="images", client="", label=-1)
        grid = gallery.grid(c.run, single, most=12)
        if grid:
            grids.append((names[order][0], f"r{order}", grid))
    drawn = sorted({n for c in runs for n in drawn_rounds(c.run)})
    return [
        Part(
            "curves",
            "card wide",
            _fill("curves", chart=compare.curves(runs), spread=compare.spread(runs)),
        ),
        Part(
            "table",
            "card wide",
            _fill(
                "comparetable",
                names=names,
                rows=compare.table(runs),
                differing=compare.differing(runs),
            ),
        ),
        Part("grids", "card wide", _fill("comparegrids", grids=grids)),
        Part("newest", "hidden", f"{drawn[0]} {drawn[-1]}" if drawn else ""),
    ]


def page(ask: Ask, made: Sequence[Part], title: str) -> str:
    """Return a whole page."""
    tabs = [(TITLES[p], ask.to(p), p == ask.page) for p in TITLES] if ask.page in TITLES else []
    newest = next((part.html for part in made if part.name == "newest"), "")
    return environment.get_template("page.html").render(
        ask=ask,
        parts=made,
        title=words.clean(title, 80),
        tabs=tabs,
        newest=newest.split() or ["0", "0"],
    )


def changed(made: Sequence[Part], have: str) -> dict[str, dict[str, str]]:
    """Return the parts whose stamp differs from that which a tab says it has."""
    stamps = dict(pair.split(":", 1) for pair in have.split(",") if ":" in pair)
    return {
        part.name: {"html": part.html, "stamp": part.stamp}
        for part in made
        if stamps.get(part.name) != part.stamp
    }


def today() -> float:
    """Return the time now, in whole seconds: tabs that ask within one share a page."""
    return float(int(time.time()))
