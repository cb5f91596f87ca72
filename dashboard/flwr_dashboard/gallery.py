"""Images of a run as the pages place them: a grid of clients and classes, strips over rounds.

A cell is cut out of its round's sprite by SVG, so that the browser loads one picture a round and no
picture is decoded here. Knows no HTML.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from flwr_dashboard import words
from flwr_dashboard.ask import Ask
from flwr_dashboard.pictures import Cell, Cells, cells, drawn_rounds, extent, spread
from flwr_dashboard.state import Growth, Round, Run, Sprite
from flwr_dashboard.views import MAX_COLUMNS, MAX_ROWS, order

GLANCED = 12
"""Clients of the grid on the page Run."""
MAX_STRIPS = 8
"""Film strips beside the grid."""
MAX_GROWING, MAX_FILMS = 12, 4
"""Clients whose images are shown as they grow, and images of each."""


@dataclass(frozen=True)
class Sheet:
    """A sprite in a page: its name there, its address, its size in pixels."""

    name: str
    href: str
    width: int
    height: int


@dataclass(frozen=True)
class Shown:
    """A cell to be drawn.

    Attributes
    ----------
    count
        Images of this client and class in the round.
    before
        The cell of the round before, where the difference is wanted.
    """

    sheet: str
    cell: Cell
    said: str
    count: int = 1
    link: str = ""
    before_sheet: str = ""
    before: Cell | None = None


@dataclass(frozen=True)
class Grid:
    """A round's images: a row a client, a column a class; a blank where there is none."""

    round: int
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Shown | None]]]
    sheets: Sequence[Sheet]
    num_images: int
    clients: int


@dataclass(frozen=True)
class Strip:
    """One client's images of one class over the rounds."""

    name: str
    frames: Sequence[Shown]


@dataclass(frozen=True)
class Detail:
    """What was clicked: all images of a client and class, what is known of them, how they grew.

    Attributes
    ----------
    growth
        Rows of a client's images within the round, each with the iterations done.
    """

    name: str
    said: Sequence[str]
    frames: Sequence[Shown]
    strip: Strip
    growth: Sequence[tuple[str, Sequence[Shown]]]
    sheets: Sequence[Sheet]


def class_name(run: Run, label: int) -> str:
    """Return a class's name, or its number where it has none."""
    return run.classes[label] if label < len(run.classes) else str(label)


def shown_round(run: Run, wanted: int | None) -> int | None:
    """Return the round whose images are shown: the one wanted, or the last before it."""
    drawn = drawn_rounds(run)
    fitting = [n for n in drawn if wanted is None or n <= wanted]
    shown = fitting[-1:] or drawn[:1]
    return shown[0] if shown else None


def sheet(run_id: str, this: Round, sprite: Sprite) -> Sheet:
    """Return the sheet of a round's sprite; its time makes a new address of one written again."""
    width, height = extent(sprite)
    href = f"{Ask('sprite', (run_id,), round=this.number).link()}&at={sprite.time:.0f}"
    return Sheet(f"s{this.number}", href, width, height)


def grid(run: Run, ask: Ask, *, most: int = MAX_ROWS) -> Grid | None:
    """Return the images of the round asked for; None where no round has any."""
    number = shown_round(run, ask.round)
    if number is None:
        return None
    this, earlier = run.rounds[number], _before(run, number) if ask.changed else None
    here, there = cells(this), cells(earlier) if earlier else {}
    sheets = [sheet(ask.id, r, r.sprite) for r in (this, earlier) if r and r.sprite]
    owners = sorted({owner for owner, _ in here}, key=order)
    labels = columns(run, here)
    rows = [
        (
            words.client_name(owner),
            [
                _shown(run, ask, (owner, k), here.get((owner, k)), there.get((owner, k)), sheets)
                for k in labels
            ],
        )
        for owner in owners[ask.first : ask.first + most]
    ]
    made = this.sprite.num_images if this.sprite else 0
    return Grid(number, [class_name(run, k) for k in labels], rows, sheets, made, len(owners))


def columns(run: Run, here: Cells) -> list[int]:
    """Return the classes that have a column: all, or of very many those with images."""
    every = range(len(run.classes))
    if not every or len(every) > MAX_COLUMNS:
        every = sorted({label for _, label in here})  # type: ignore[assignment]
    return list(every)[:MAX_COLUMNS]


def _before(run: Run, number: int) -> Round | None:
    earlier = [n for n in drawn_rounds(run) if n < number]
    return run.rounds[earlier[-1]] if earlier else None


def _shown(
    run: Run,
    ask: Ask,
    key: tuple[str, int],
    here: list[Cell] | None,
    there: list[Cell] | None,
    sheets: Sequence[Sheet],
) -> Shown | None:
    if not here:
        return None
    owner, label = key
    link = ask.link("images", client=owner, label=label)
    said = f"{words.whose(owner)}, class {class_name(run, label)}, round {here[0].round}"
    if there and len(sheets) > 1:
        return Shown(sheets[0].name, here[0], said, len(here), link, sheets[1].name, there[0])
    return Shown(sheets[0].name, here[0], said, len(here), link)


def strips(run: Run, ask: Ask) -> tuple[list[Strip], list[Sheet]]:
    """Return how images changed over the rounds: each client's heaviest class, and the sheets."""
    numbers = spread(drawn_rounds(run))
    if len(numbers) < 2:
        return [], []
    drawn = [cells(run.rounds[number]) for number in numbers]
    heaviest: dict[str, tuple[float, int]] = {}
    for (owner, label), found in drawn[-1].items():
        heaviest[owner] = max(heaviest.get(owner, (-1.0, 0)), (found[0].weight, -label))
    owners = sorted(heaviest, key=order)
    shown = [owners[i] for i in spread(range(len(owners)), MAX_STRIPS)]
    films = [strip(run, owner, -heaviest[owner][1], drawn) for owner in shown]
    return films, _sheets(run, ask.id, numbers)


def strip(run: Run, owner: str, label: int, drawn: Sequence[Cells]) -> Strip:
    """Return one client's first image of a class in each of some rounds that have it."""
    first = [here[owner, label][0] for here in drawn if (owner, label) in here]
    frames = [Shown(f"s{cell.round}", cell, f"round {cell.round}") for cell in first]
    return Strip(f"{words.whose(owner)}, class {class_name(run, label)}", frames)


def _sheets(run: Run, run_id: str, numbers: Sequence[int]) -> list[Sheet]:
    found = [(run.rounds[n], run.rounds[n].sprite) for n in numbers]
    return [sheet(run_id, this, sprite) for this, sprite in found if sprite]


def detail(run: Run, ask: Ask) -> Detail | None:
    """Return what is known of the client and class that were clicked; None where nothing is."""
    number = shown_round(run, ask.round)
    if number is None or not ask.client:
        return None
    here = cells(run.rounds[number])
    labels = sorted(k for owner, k in here if owner == ask.client)
    if not labels:
        return None
    label = ask.label if ask.label in labels else labels[0]
    found = here[ask.client, label]
    numbers = sorted({*spread(drawn_rounds(run)), number})
    part = run.rounds[number].parts.get(ask.client)
    said = [f"{len(found)} images of this class in round {number}"]
    if found[0].weight:
        said.append(f"weight {found[0].weight:.4g} each")
    if part and part.last_loss is not None:
        loss = f"{words.decimal(part.first_loss)} → {words.decimal(part.last_loss)}"
        said.append(f"the client's matching loss {loss}")
    growth, grown = _growth(run, ask, run.rounds[number])
    return Detail(
        f"{words.whose(ask.client).capitalize()}, class {class_name(run, label)}",
        said,
        [Shown(f"s{number}", cell, f"image {i + 1}") for i, cell in enumerate(found)],
        strip(run, ask.client, label, [cells(run.rounds[n]) for n in numbers]),
        growth,
        [*_sheets(run, ask.id, numbers), *grown],
    )


@dataclass(frozen=True)
class Growing:
    """How one client's images grow within a round: a film an image, a frame a moment."""

    name: str
    link: str
    films: Sequence[tuple[str, Sequence[Shown]]]


def growing(run: Run, ask: Ask) -> tuple[int, str, list[Growing], list[Sheet]]:
    """Return a round, its moments in words, its clients' films and their sheets.

    It is the round asked for, or the newest that has any.
    """
    numbers = [n for n, r in sorted(run.rounds.items()) if r.growth]
    wanted = numbers[-1:] if ask.round is None else [n for n in numbers if n == ask.round]
    if not wanted:
        return 0, "", [], []
    this, found, sheets = run.rounds[wanted[0]], [], []
    for index, owner in enumerate(sorted(this.growth, key=order)[:MAX_GROWING]):
        grown, whose = this.growth[owner], words.whose(owner)
        films = [
            (
                class_name(run, label),
                [
                    Shown(
                        f"g{index}",
                        _grown_cell(this.number, grown, row, column),
                        f"{whose}, class {class_name(run, label)}, iteration {iteration}",
                    )
                    for row, iteration in enumerate(grown.iterations)
                ],
            )
            for column, label in enumerate(grown.labels[:MAX_FILMS])
        ]
        link = ask.link("images", client=owner, label=-1)
        found.append(Growing(whose, link, films))
        sheets.append(_growth_sheet(f"g{index}", ask.id, this, owner, grown))
    moments = max((g.iterations for g in this.growth.values()), key=len)
    return this.number, ", ".join(map(str, moments)), found, sheets


def _growth_sheet(name: str, run_id: str, this: Round, owner: str, found: Growth) -> Sheet:
    href = Ask("growth", (run_id,), round=this.number, client=owner).link()
    width, height = len(found.labels) * found.side, len(found.iterations) * found.side
    return Sheet(name, f"{href}&at={found.time:.0f}", width, height)


def _growth(
    run: Run, ask: Ask, this: Round
) -> tuple[list[tuple[str, Sequence[Shown]]], list[Sheet]]:
    """Return a client's images at moments within a round, and their sheet."""
    found = this.growth.get(ask.client)
    if found is None or not found.labels or not found.iterations:
        return [], []
    rows: list[tuple[str, Sequence[Shown]]] = []
    for row, iteration in enumerate(found.iterations):
        frames = [
            Shown("grown", _grown_cell(this.number, found, row, column), class_name(run, label))
            for column, label in enumerate(found.labels)
        ]
        rows.append((f"after {iteration} iterations", frames))
    return rows, [_growth_sheet("grown", ask.id, this, ask.client, found)]


def _grown_cell(number: int, found: Growth, row: int, column: int) -> Cell:
    return Cell(
        number, column * found.side, row * found.side, found.side, found.labels[column], 0.0
    )
