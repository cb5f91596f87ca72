"""What the pages say of a run: numbers of ``state`` chosen, put in order and put in words.

Knows no HTML; what it returns is what the templates place.
"""

import json
import math
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import attrgetter

from flwr_dashboard import svg, words
from flwr_dashboard.ask import Ask
from flwr_dashboard.log import Record
from flwr_dashboard.state import Client, Part, Run, Standing, is_warning

Scalar = bool | int | float | str
WIDE, NARROW = 640, 330
"""Widths that a chart is drawn for; the style sheet shows the one that fits."""
MAX_ROWS = 30
"""Clients shown as rows; more become a grid of glyphs."""
MAX_MATRIX = 200
"""Clients and rounds of the field of replies."""
MAX_COLUMNS = 20
"""Classes shown as columns."""
MAX_BARS = 100
"""Bars of one chart: rounds, the newest, or one page of clients."""

GLYPHS = {
    "idle": ("·", "idle"),
    "trains": ("…", "trains"),
    "replied": ("▲", "replied"),
    "distils": ("◐", "distils"),
    "done": ("✓", "done"),
    "late": ("!", "late"),
    "failed": ("×", "failed"),
}
"""State of a client -> its glyph and its word."""

PHASES = {
    "wait": "wait for clients",
    "clients": "clients train",
    "aggregate": "aggregate",
    "distill": "distil",
    "learn": "learn from the images",
    "score": "score",
    "evaluate": "clients score",
    "save": "save",
}
"""Phase -> its words, in a round's order."""


def clients_in_order(run: Run) -> list[Client]:
    """Return the clients, numbers before names and in numeric order."""
    return sorted(run.clients.values(), key=lambda c: order(c.name))


def order(name: str) -> tuple[bool, int, str]:
    """Return by what clients are sorted."""
    is_count = name.isascii() and name.isdigit()
    return (not is_count, int(name) if is_count else 0, name)


@dataclass(frozen=True)
class Tile:
    """A number that is seen first."""

    name: str
    value: str
    note: str = ""


def tiles(run: Run, stands: Standing, now: float) -> list[Tile]:
    """Return the seven numbers of a run."""
    done, best = run.done(), run.best()
    planned = max(run.rounds_planned, run.round)
    control = run.control.get(run.model)
    took = _took(run, stands, now)
    each = [r.seconds for r in done if r.seconds is not None]
    up, down = sum(r.bytes_up for r in done), sum(r.bytes_down for r in done)
    aside = run.set_aside()
    left = _left(run, stands, now)
    over = best[1] - control if best and control is not None else None
    return [
        Tile("round", f"{len(done) and done[-1].number} of {planned or '?'}", left),
        Tile(
            "best accuracy",
            words.percent(best[1] if best else None),
            f"{run.model}, round {best[0]}" if best else "not scored yet",
        ),
        Tile(
            "over the prior alone",
            words.points(over),
            f"which gives {words.percent(control)}" if control is not None else "no control",
        ),
        Tile(
            "clients",
            f"{run.online or sum(c.is_one for c in run.clients.values())}",
            "online" if run.online else "seen",
        ),
        Tile(
            "set aside",
            f"{aside}",
            f"of {run.answered():,} asked" if aside else "every reply counts",
        ),
        Tile("sent up", words.size(up), f"{words.size(down)} down"),
        Tile(
            "time",
            words.duration(took),
            f"{words.duration(sum(each) / len(each))} a round" if each else "",
        ),
    ]


def _took(run: Run, stands: Standing, now: float) -> float:
    if run.began is None or run.last is None:
        return 0.0
    end = now if stands.key in ("running", "waiting") else run.last
    return max(end - run.began, 0.0)


def _left(run: Run, stands: Standing, now: float) -> str:
    if stands.key not in ("running", "waiting"):
        return "" if stands.key != "completed" else "all done"
    if run.eta_s is None:
        return "no pace yet"
    left = run.eta_s - (now - run.eta_told)
    # Coarse, or the number would change at every look and mean nothing.
    return f"about {words.duration(max(left // 10 * 10, 10))} left"


def present(run: Run) -> str:
    """Return what the server does now, in words; empty between phases."""
    name = PHASES.get(run.phase, run.phase)
    return ", ".join(said for said in (name, run.progress) if said)


# --- accuracy -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Chart:
    """A chart for wide and for narrow pages, and the same as a table."""

    wide: str
    narrow: str
    head: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


def accuracy(run: Run, axis: str, colour: int) -> Chart | None:
    """Return the models' accuracy over rounds, bytes or seconds; None where nothing was scored."""
    scored = run.scored()
    models = list(dict.fromkeys(name for r in scored for name in r.accuracy))
    models.sort(key=lambda name: name != run.model)
    if not models:
        return None
    spots, x_name = _spots(run, axis)
    lines = [
        svg.Line(name, [(spots[n], a) for n, a in run.accuracy(name) if n in spots], colour + i)
        for i, name in enumerate(models[:8])
    ]
    control = run.control.get(run.model)
    last = max(run.rounds_planned, run.round) if axis == "round" else max(spots.values(), default=1)
    level = ("prior alone", control) if control is not None else None
    title = f"Test accuracy by {axis}: " + "; ".join(
        f"{name} from {words.percent(at[0][1])} to {words.percent(at[-1][1])}"
        for name, at in ((line.name, line.points) for line in lines)
        if at
    )
    wide, narrow = (
        svg.line_chart(
            lines,
            title=title,
            width=width,
            height=height,
            x_last=last,
            x_name=x_name,
            level=level,
            whole_x=axis == "round",
        )
        for width, height in ((WIDE, 380), (NARROW, 240))
    )
    rows = [[str(r.number), *(words.percent(r.accuracy.get(m)) for m in models)] for r in scored]
    return Chart(wide, narrow, ["round", *models], rows)


def _spots(run: Run, axis: str) -> tuple[dict[int, float], str]:
    """Return where each round stands on the axis, and the axis's name."""
    if axis == "round":
        return {n: float(n) for n in run.rounds}, "round"
    spots, total = {0: 0.0}, 0.0
    for this in run.done():
        total += this.bytes_up / 1e6 if axis == "bytes" else (this.seconds or 0.0) / 60
        spots[this.number] = total
    return spots, {"bytes": "MB sent up by the clients", "seconds": "minutes of rounds"}[axis]


# --- clients ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Row:
    """A client as a row; ``marks`` says of each class: empty, a dot, or a share of its images."""

    name: str
    short: str
    state: str
    glyph: str
    now: str
    examples: str
    seconds: str
    spark: str
    marks: Sequence[str]
    link: str
    more: str = ""


def row(run: Run, client: Client, ask: Ask) -> Row:
    """Return one client's row."""
    this = run.rounds.get(client.last_round)
    part = this.parts.get(client.name, Part()) if this else Part()
    glyph, _ = GLYPHS[client.state]
    losses = [x for x in client.losses if math.isfinite(x)]
    title = (
        f"Matching loss of client {client.name} in this round, now {words.decimal(losses[-1])}"
        if losses
        else ""
    )
    return Row(
        client.name,
        words.client_name(client.name),
        client.state,
        glyph,
        _now(client, part),
        f"{part.examples:,}" if part.examples else "–",
        words.duration(part.seconds),
        svg.sparkline(losses, title=title, width=72) if losses else "",
        _marks(client, min(len(run.classes), MAX_COLUMNS)),
        ask.link("federation", client=client.name, ids=ask.ids[:1]),
        _more(client, part),
    )


def _now(client: Client, part: Part) -> str:
    if client.state == "distils":
        loss = f", loss {words.decimal(client.losses[-1])}" if client.losses else ""
        return f"distilling {client.iteration}/{client.iterations}{loss}"
    if client.state == "done":
        first, last = words.decimal(part.first_loss), words.decimal(part.last_loss)
        return f"distilled, loss {first} → {last}"
    if client.state in ("late", "failed"):
        word = part.outcome if part.outcome != "asked" else client.state
        return f"{word}: {part.reason}" if part.reason else word
    return GLYPHS[client.state][1]


def _marks(client: Client, columns: int) -> list[str]:
    if client.counts:
        most = max(client.counts) or 1
        # Nine heights, as classes of the style sheet, which a page may not set by itself.
        counts = [*client.counts, *[0] * columns][:columns]
        return [f"bar h{math.ceil(8 * c / most)}" if c else "" for c in counts]
    return ["dot" if label in client.classes else "" for label in range(columns)]


def _more(client: Client, part: Part) -> str:
    said = [f"{part.images} images made" if part.images else ""]
    said.append(
        f"loss of its own training {words.decimal(part.loss)}" if part.loss is not None else ""
    )
    said.append(f"moved {words.decimal(part.moved)}" if part.moved is not None else "")
    said.append(f"{words.size(part.bytes_up)} up" if part.bytes_up else "")
    said.append(f"node {client.node}" if client.node else "")
    return ", ".join(s for s in said if s)


@dataclass(frozen=True)
class Square:
    """A client as a square of a grid."""

    name: str
    short: str
    state: str
    glyph: str
    word: str
    link: str


def squares(clients: Iterable[Client], ask: Ask) -> list[Square]:
    """Return clients as squares."""
    return [
        Square(
            c.name, words.client_name(c.name), c.state, *GLYPHS[c.state], ask.link(client=c.name)
        )
        for c in clients
    ]


def tally(run: Run) -> list[tuple[str, str, int]]:
    """Return how many clients are in which state: state, words, count."""
    counts = dict.fromkeys(GLYPHS, 0)
    for client in filter(attrgetter("is_one"), run.clients.values()):
        counts[client.state] += 1
    return [(state, GLYPHS[state][1], n) for state, n in counts.items() if n]


LETTERS = {"replied": "r", "late": "l", "failed": "f", "malformed": "m", "asked": "a"}


def replies(run: Run, first: int) -> Chart | None:
    """Return the field of replies, clients by rounds; None before the first round."""
    numbers = sorted(n for n in run.rounds if n)[-MAX_MATRIX:]
    if not numbers:
        return None
    chosen = clients_in_order(run)[first : first + MAX_MATRIX]
    span = range(numbers[0], numbers[-1] + 1)[-MAX_MATRIX:]
    parts = [run.rounds[n].parts if n in run.rounds else {} for n in span]
    rows = [
        (words.client_name(c.name), "".join(_letter(p.get(c.name)) for p in parts)) for c in chosen
    ]
    bad = sum(states.count(letter) for _, states in rows for letter in "lfm")
    title = (
        f"Replies of {len(rows)} clients in rounds {span[0]} to {span[-1]}: {bad} late, failed or "
        "malformed"
    )
    wide, narrow = (
        svg.matrix(rows, title=title, first=span[0], width=width) for width in (1100, NARROW)
    )
    return Chart(wide, narrow)


def _letter(part: Part | None) -> str:
    return " " if part is None else LETTERS[part.outcome]


# --- time ---------------------------------------------------------------------------------------


def phase_class(name: str) -> str:
    """Return the style class of a phase."""
    return f"p-{name}" if name in PHASES else "p-other"


def timed(run: Run) -> list[int]:
    """Return the rounds of which it is known where their time went, and the present one."""
    return sorted(n for n, r in run.rounds.items() if r.phases or n == run.round)


def rounds_by_phase(run: Run, ask: Ask, now: float, *, most: int = MAX_BARS) -> Chart | None:
    """Return a bar a round, its parts the phases; the newest rounds of very many."""
    numbers = timed(run)[-most:]
    rows, table = [], []
    for number in numbers:
        phases = dict(run.rounds[number].phases)
        going = number == run.round and bool(run.phase) and not run.rounds[number].ended
        if going and not run.status:
            phases[run.phase] = phases.get(run.phase, 0.0) + max(now - run.phase_began, 0.0)
        known = sorted(phases, key=lambda p: [*PHASES, p].index(p))
        total = sum(phases.values())
        full = f"round {number}" if len(numbers) <= svg.FEW_BARS else str(number)
        name = full if number else "start"
        parts = [(phase_class(p), PHASES.get(p, p), phases[p]) for p in known]
        end = words.duration(total) + (" …" if going else "")
        rows.append(svg.Bar(name, parts, end, ask.to("time") and ask.link("time", round=number)))
        table.append([name, *(f"{phases.get(p, 0):.1f}" for p in PHASES), f"{total:.1f}"])
    if not rows:
        return None
    wide, narrow = (
        svg.bars(rows, title="Seconds of each round by phase", width=width)
        for width in (1100, NARROW)
    )
    return Chart(wide, narrow, ["round", *PHASES, "all"], table)


def phases_present(run: Run) -> list[tuple[str, str]]:
    """Return the phases of a run: class, words."""
    known = {p for r in run.rounds.values() for p in r.phases} | ({run.phase} - {""})
    names = [p for p in PHASES if p in known]
    return [(phase_class(p), PHASES[p]) for p in names] + [
        ("p-other", words.clean(p)) for p in sorted(known - set(PHASES))[:8]
    ]


def clients_of_round(run: Run, number: int, first: int) -> Chart | None:
    """Return a bar a client for one round: its training, then the server's distillation."""
    parts_by_name = run.rounds[number].parts if number in run.rounds else {}
    rows = []
    for name in sorted(parts_by_name, key=order)[first : first + MAX_BARS]:
        part = parts_by_name[name]
        parts = [
            ("p-clients", "trains", part.seconds or 0.0),
            ("p-distill", "is distilled", part.distill_seconds or 0.0),
        ]
        end = words.duration(sum(p[2] for p in parts))
        said = end if part.outcome == "replied" else f"{end}, {part.outcome}"
        rows.append(svg.Bar(words.client_name(name), parts, said))
    if not rows:
        return None
    title = f"Seconds of each client in round {number}"
    wide, narrow = (svg.bars(rows, title=title, width=width) for width in (1100, NARROW))
    return Chart(wide, narrow)


# --- configuration and log ----------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """A setting as it holds, and whether the user said it."""

    key: str
    value: str
    said: bool


def settings(run: Run) -> list[tuple[str, list[Setting]]]:
    """Return the settings by their group."""
    groups: dict[str, list[Setting]] = {}
    for key, value in run.config.items():
        group = key.rpartition(".")[0] or "run"
        groups.setdefault(group, []).append(Setting(key, value, key in run.said))
    return list(groups.items())


def run_config(run: Run) -> str:
    """Return the user's settings, or all where nobody says whose they are, for ``flwr run -c``."""
    chosen = {k: v for k, v in list(run.given.items())[:1000] if k in run.said or not run.said}
    lines = [(words.clean(key, 80), value) for key, value in chosen.items()]
    return "\n".join(f"{_key(k)} = {_toml(v)}" for k, v in lines if isinstance(v, Scalar))


_BARE = re.compile(r"[A-Za-z0-9_-]+(?:\.[A-Za-z0-9_-]+)*")


def _key(key: str) -> str:
    """Return a dotted key as TOML has it, in quotes where it needs them."""
    return key if _BARE.fullmatch(key) else _toml(key)


def _toml(value: bool | float | str) -> str:
    """Return a scalar as TOML writes it."""
    if not isinstance(value, str):
        return json.dumps(value)
    # A half of a pair is no character.
    return f'"{"".join(map(_escaped, value.encode("utf-8", "replace").decode()))}"'


def _escaped(character: str) -> str:
    """Return a character of a TOML text, by its number where it is no plain, visible one."""
    if character in '"\\':
        return f"\\{character}"
    if character.isprintable():
        return character
    number = ord(character)
    return f"\\u{number:04x}" if number < 1 << 16 else f"\\U{number:08x}"


@dataclass(frozen=True)
class Said:
    """An event in words."""

    clock: str
    round: int
    kind: str
    words: str
    warning: bool


def said(records: Iterable[Record]) -> list[Said]:
    """Return events in words, the latest first."""
    return [
        Said(
            clock(r["time"]),
            r["round"],
            words.clean(r["kind"], 40),
            words.sentence(r),
            is_warning(r),
        )
        for r in reversed(list(records))
    ]


def clock(moment: float | None, *, date: bool = False) -> str:
    """Return a moment in this machine's time; a dash for one beyond any calendar."""
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S" if date else "%H:%M:%S", time.localtime(moment))
    except (ValueError, OverflowError, OSError):
        return "–"
