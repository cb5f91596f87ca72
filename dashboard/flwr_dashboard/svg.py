"""Charts as SVG: numbers in, text out.

Knows no run and no page. Colours are classes (``c0`` to ``c4``, dashes ``d1`` to ``d3``) that the
style sheet fills in for light and dark; every chart has a title that says in words what it shows,
and is drawn for a width in pixels, so that letters keep their size. Nothing is ever smoothed.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

COLOURS = 5
DASHES = 4
MAX_DOTS = 40
"""Points beyond which a line has no dots."""
FEW_BARS = 30
"""Bars up to which each is high and its parts say what they are."""
THIN = 11
"""Height of one of more bars, in pixels, which the style sheet has as well."""
MIN_PIXELS = 0.1
"""A shorter part of a bar is not drawn."""
LETTER = 7.2
"""Width of a letter in pixels, at most, at the charts' 12; bold ones take a tenth more."""


@dataclass(frozen=True)
class Line:
    """A line of a chart; ``colour`` counts on through the dashes."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0


def classes(colour: int) -> str:
    """Return the classes of the ``colour``-th line: five colours, then the same dashed."""
    return f"c{colour % COLOURS} d{colour // COLOURS % DASHES}"


def ticks(low: float, high: float, about: int) -> list[float]:
    """Return round numbers from ``low`` to ``high``, about so many."""
    if not high > low:
        return [low]
    raw = (high - low) / max(about, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    return [i * step for i in range(first, math.floor(high / step + 1e-9) + 1)]


def _n(value: float) -> str:
    """Return a coordinate, short."""
    return f"{value:.1f}".rstrip("0").rstrip(".")


def share_range(values: Sequence[float]) -> tuple[float, float]:
    """Return an axis for shares: from a fifth below the lowest, at round numbers, to 100 %."""
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    step = 0.1 if 1 - low > 0.25 else 0.05 if 1 - low > 0.1 else 0.01
    floor = math.floor((low - 0.1 * (high - low) - 1e-9) / step) * step
    return max(0.0, min(floor, 1 - step)), max(1.0, high)


def line_chart(
    lines: Sequence[Line],
    *,
    title: str,
    width: int,
    height: int,
    x_last: float,
    x_text: str = "{:g}",
    x_name: str = "round",
    level: tuple[str, float] | None = None,
    whole_x: bool = True,
) -> str:
    """Return lines of shares over ``x``, from 0 to ``x_last``; the part still to come is shaded.

    Parameters
    ----------
    x_text
        How a number on the axis is written.
    level
        Name and height of a dashed level, such as a control.
    whole_x
        Whether only whole numbers make sense on the axis.
    """
    frame = _frame(lines, level, width=width, height=height, x_last=x_last)
    drawn = [
        _open(width, height, title, "chart"),
        *_to_come(frame, max((x for line in lines for x, _ in line.points), default=0)),
        *_shares(frame),
    ]
    for x in ticks(0, frame.x_last, 5 if width < 450 else 8):
        if not whole_x or x == int(x):
            drawn.append(_text(frame.x(x), frame.base + 16, x_text.format(x), "middle"))
    drawn.append(_text((frame.left + frame.end) / 2, height - 4, x_name, "middle"))
    if level:
        drawn.append(f'<path class="level" d="M{frame.left} {_n(frame.y(level[1]))}H{frame.end}"/>')
    drawn += [_line(line, frame) for line in lines]
    drawn += _end_labels(lines, level, frame)
    return "".join(drawn) + "</svg>"


@dataclass(frozen=True)
class _Frame:
    """Where a line chart's axes stand, in pixels, and from which to which value they go."""

    left: int
    end: int
    top: int
    base: int
    x_last: float
    low: float
    high: float

    def x(self, value: float) -> float:
        return self.left + (self.end - self.left) * value / self.x_last

    def y(self, value: float) -> float:
        return self.top + (self.base - self.top) * (self.high - value) / (self.high - self.low)


def _frame(
    lines: Sequence[Line],
    level: tuple[str, float] | None,
    *,
    width: int,
    height: int,
    x_last: float,
) -> _Frame:
    """Return axes that hold all points, with room at the right for what is written there."""
    values = [y for line in lines for _, y in line.points] + ([level[1]] if level else [])
    low, high = share_range(values)
    longest = max((len(name) for name, _, _ in _ends(lines, level)), default=0)
    right = min(int(longest * LETTER * 1.1) + 12, int(width * 0.42))
    reached = max((x for line in lines for x, _ in line.points), default=0)
    return _Frame(48, width - right, 10, height - 38, max(x_last, reached, 1e-9), low, high)


def _ends(lines: Sequence[Line], level: tuple[str, float] | None) -> list[tuple[str, float, int]]:
    """Return what is written beside each line's end, its value and its colour, -1 for the level."""
    found = [(line.name, line.points[-1][1], line.colour) for line in lines if line.points]
    found += [(*level, -1)] if level else []
    return [(f"{name} {100 * y:.1f} %", y, colour) for name, y, colour in found]


def _to_come(frame: _Frame, reached: float) -> list[str]:
    """Return the shade over what is still to come."""
    if not 0 < reached < frame.x_last:
        return []
    left, size = frame.x(reached), frame.base - frame.top
    shape = f'x="{_n(left)}" width="{_n(frame.end - left)}" y="{frame.top}" height="{size}"'
    return [f'<rect class="tocome" {shape}/>']


def _shares(frame: _Frame) -> list[str]:
    """Return the rules across, each with its share."""
    drawn = []
    for value in ticks(frame.low, frame.high, 5):
        y = frame.y(value)
        digits = 0 if abs(100 * value - round(100 * value)) < 1e-6 else 1
        drawn.append(f'<path class="rule" d="M{frame.left} {_n(y)}H{frame.end}"/>')
        drawn.append(_text(frame.left - 6, y + 4, f"{100 * value:.{digits}f} %", "end"))
    return drawn


def _line(line: Line, frame: _Frame) -> str:
    spots = [(frame.x(x), frame.y(y), x, y) for x, y in line.points]
    path = "L".join(f"{_n(x)} {_n(y)}" for x, y, _, _ in spots)
    if not path:
        return ""
    dots = spots if len(spots) <= MAX_DOTS else spots[-1:]
    marks = "".join(
        f'<circle cx="{_n(x)}" cy="{_n(y)}" r="3"><title>{escape(line.name)}: {100 * v:.1f} %'
        f"</title></circle>"
        for x, y, _, v in dots
    )
    return f'<g class="line {classes(line.colour)}"><path d="M{path}"/>{marks}</g>'


def _end_labels(lines: Sequence[Line], level: tuple[str, float] | None, frame: _Frame) -> list[str]:
    """Return the last value of each line beside its end, none over another."""
    wanted = sorted((frame.y(y), name, colour) for name, y, colour in _ends(lines, level))
    spots: list[float] = []
    for y, _, _ in wanted:
        spots.append(max(y, spots[-1] + 15 if spots else frame.top))
    # What was pushed below the chart goes up again, from the last.
    for i in range(len(spots) - 1, -1, -1):
        spots[i] = min(spots[i], (spots[i + 1] if i + 1 < len(spots) else frame.base + 15) - 15)
    return [
        _text(
            frame.end + 10,
            y + 4,
            name,
            "start",
            "quiet" if colour < 0 else f"ends c{colour % COLOURS}",
        )
        for y, (_, name, colour) in zip(spots, wanted, strict=True)
    ]


def _open(width: float, height: float, title: str, kind: str, role: str = "img") -> str:
    return (
        f'<svg class="{kind}" viewBox="0 0 {_n(width)} {_n(height)}" width="{_n(width)}" '
        f'height="{_n(height)}" role="{role}"><title>{escape(title)}</title>'
    )


def _text(x: float, y: float, words: str, anchor: str, kind: str = "quiet") -> str:
    where = f'x="{_n(x)}" y="{_n(y)}"'
    return f'<text {where} class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def sparkline(values: Sequence[float], *, title: str, colour: int = 0, width: int = 96) -> str:
    """Return a small line without axes, from its lowest to its highest value."""
    height = 24
    if len(values) < 2:
        return ""
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    step = (width - 8) / (len(values) - 1)
    spots = [(4 + i * step, 4 + (height - 8) * (high - v) / span) for i, v in enumerate(values)]
    path = "L".join(f"{_n(x)} {_n(y)}" for x, y in spots)
    x, y = spots[-1]
    return (
        f'{_open(width, height, title, "spark")}<g class="line {classes(colour)}">'
        f'<path d="M{path}"/><circle cx="{_n(x)}" cy="{_n(y)}" r="2.5"/></g></svg>'
    )


@dataclass(frozen=True)
class Bar:
    """A bar of parts: (class, name, length); ``link`` where a click leads."""

    name: str
    parts: Sequence[tuple[str, str, float]]
    end: str
    link: str = ""


def bars(rows: Sequence[Bar], *, title: str, width: int, unit: str = " s") -> str:
    """Return horizontal bars, each of parts one after the other, on one scale."""
    longest = max((sum(p[2] for p in row.parts) for row in rows), default=0) or 1.0
    left = max((len(row.name) for row in rows), default=0) * LETTER + 10
    right = max((len(row.end) for row in rows), default=0) * LETTER + 10
    scale = max(width - left - right, 40) / longest
    few = len(rows) <= FEW_BARS
    pitch, thick = (28, 18) if few else (16, THIN)
    # An image has no links inside; a group may.
    role = "group" if any(row.link for row in rows) else "img"
    out = [_open(width, len(rows) * pitch + 2, title, "chart bars", role)]
    draw = _bar_with_titles if few else _bar
    for number, row in enumerate(rows):
        y = number * pitch + (pitch - thick) / 2
        marks, end = draw(row, left, y, thick, scale, unit)
        middle = _n(y + thick / 2 + 4)
        name = f'<text class="e" x="{_n(left - 8)}" y="{middle}">{escape(row.name)}</text>'
        last = f'<text x="{_n(end + 6)}" y="{middle}">{escape(row.end)}</text>'
        link = f'<a href="{escape(row.link)}">' if row.link else ""
        out.append(f"{link}{name}{marks}{last}" + ("</a>" if link else ""))
    return "".join(out) + "</svg>"


def _bar_with_titles(
    row: Bar, x: float, y: float, thick: float, scale: float, unit: str
) -> tuple[str, float]:
    """Return a bar whose parts say what they are, and where it ends."""
    marks = []
    for kind, name, length in row.parts:
        if length * scale >= MIN_PIXELS:
            shape = f'x="{_n(x)}" y="{_n(y)}" width="{_n(length * scale)}" height="{thick}"'
            said = f"<title>{escape(name)}: {length:.1f}{unit}</title>"
            marks.append(f'<rect class="{kind}" {shape}>{said}</rect>')
        x += length * scale
    return "".join(marks), x


def _bar(row: Bar, x: float, y: float, thick: float, scale: float, unit: str) -> tuple[str, float]:
    """Return a bar in few bytes, and where it ends."""
    marks = []
    for kind, _, length in row.parts:
        if length * scale >= MIN_PIXELS:
            # A stroke, as thick as the style sheet says.
            where = f"M{_n(x)} {_n(y + thick / 2)}h{_n(length * scale)}"
            marks.append(f'<path class="{kind}" d="{where}"/>')
        x += length * scale
    return "".join(marks), x


def matrix(rows: Sequence[tuple[str, str]], *, title: str, first: int, width: int) -> str:
    """Return a field of states: a row a client, a column a round, runs of equal states joined.

    Parameters
    ----------
    rows
        Name, and a letter a round: ``r`` replied, ``l`` late, ``f`` failed, ``m`` malformed, ``a``
        asked and still awaited, a blank where not asked. Heights differ as the colours do.
    first
        The round of the first column.
    """
    columns = max((len(states) for _, states in rows), default=0)
    if not columns:
        return ""
    left = min(max(len(name) for name, _ in rows) * LETTER + 10, 70)
    across = min((width - left - 12) / columns, 28)
    pitch = 18 if len(rows) <= 30 else 7 if len(rows) <= 100 else 4
    kind = "chart matrix" if pitch >= 12 else "chart matrix dense"
    out = [_open(left + across * columns + 12, len(rows) * pitch + 30, title, kind)]
    out.append('<g transform="translate(0 6)">')
    every = 1 if pitch >= 12 else math.ceil(14 / pitch)
    for number, (name, _) in enumerate(rows):
        if number % every == 0:
            out.append(_text(left - 6, (number + 0.5) * pitch + 4, name, "end"))
    scale = f'transform="translate({_n(left)} 0) scale({across:.3f} {pitch})"'
    out.append(f"<g {scale}>")
    for state in "rlfma":
        path = "".join(
            f"M{start} {number}.5h{length}"
            for number, (_, states) in enumerate(rows)
            for start, length in _stretches(states, state)
        )
        if path:
            out.append(f'<path class="m-{state}" d="{path}"/>')
    out.append("</g>")
    for x in ticks(first, first + columns - 1, 6 if width < 450 else 12):
        if x == int(x):
            spot = left + (x - first + 0.5) * across
            out.append(_text(spot, len(rows) * pitch + 16, f"{x:g}", "middle"))
    return "".join(out) + "</g></svg>"


def _stretches(states: str, state: str) -> list[tuple[int, int]]:
    """Return where ``state`` stands without a break: start and length."""
    found, start = [], 0
    while (start := states.find(state, start)) >= 0:
        end = start
        while end < len(states) and states[end] == state:
            end += 1
        found.append((start, end - start))
        start = end
    return found
