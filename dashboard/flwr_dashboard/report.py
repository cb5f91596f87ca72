"""A run in one file: the parts of its pages with its pictures inside, to be sent and printed.

Of more rounds than twelve the images of twelve are there, evenly spread, the first and the last
among them. The file asks for nothing from anywhere.
"""

import base64
import re
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from flwr_dashboard import gallery, pages, pictures
from flwr_dashboard.ask import Ask
from flwr_dashboard.runs import Library, whole
from flwr_dashboard.state import Run
from flwr_dashboard.views import MAX_ROWS

PAGES = ("run", "federation", "time", "config")
"""Pages whose parts a report has, in order."""


def write(library: Library, run_id: str) -> str:
    """Return a run's report as one HTML file.

    Raises
    ------
    ValueError
        There is no such run.
    """
    now = time.time()
    whole(library, run_id)
    ask = Ask("run", (run_id,), static=True)
    scene = pages.scene(library, ask, now)
    assert scene is not None
    made: dict[str, pages.Part] = {}
    for name in PAGES:
        for part in pages.parts(replace(scene, ask=replace(ask, page=name))):
            made.setdefault(part.name, part)
    for name in ("newest", "images"):
        made.pop(name, None)
    grids, sheets, strips = _images(scene)
    page = pages.environment.get_template("report.html").render(
        title=run_id,
        parts=list(made.values()),
        style=Markup(_static("style.css")),
        script=Markup(_static("report.js")),
        grids=grids,
        sheets=_inside(scene.opened.folder, scene.run, sheets),
        strips=strips,
        written=time.strftime("%Y-%m-%d %H:%M", time.localtime(now)),
    )
    return re.sub(r"\n\s*\n+", "\n", page)


def _static(name: str) -> str:
    return files("flwr_dashboard").joinpath("static", name).read_text(encoding="utf-8")


def _images(
    scene: pages.Scene,
) -> tuple[list[gallery.Grid], list[gallery.Sheet], list[gallery.Strip]]:
    numbers = pictures.spread(pictures.drawn_rounds(scene.run))
    ask = replace(scene.ask, page="images")
    found = [gallery.grid(scene.run, replace(ask, round=n), most=MAX_ROWS) for n in numbers]
    grids = [grid for grid in found if grid]
    strips, _ = gallery.strips(scene.run, ask)
    return grids, [sheet for grid in grids for sheet in grid.sheets], strips


def _inside(folder: Path, run: Run, sheets: Sequence[gallery.Sheet]) -> list[gallery.Sheet]:
    """Return the sheets with their pictures as data; one that is gone is left out."""
    found = []
    for sheet in sheets:
        sprite = run.rounds[int(sheet.name[1:])].sprite
        data = pictures.read(folder, sprite.path) if sprite else None
        if data is not None:
            text = base64.b64encode(data).decode()
            found.append(replace(sheet, href=f"data:image/png;base64,{text}"))
    return found
