"""The dashboard's server: a few addresses, each answered from the folder's logs.

Knows the pages and the pictures; who may ask is ``guard``'s. One fold and one drawing serve all
tabs: a page made within the same second for the same address is made once.
"""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import (
    FileResponse,
    HTMLResponse,
    JSONResponse,
    PlainTextResponse,
    Response,
)
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from flwr_dashboard import ask as asked
from flwr_dashboard import downloads, metrics, pages, pictures, report, runs
from flwr_dashboard.ask import Ask
from flwr_dashboard.guard import Guard
from flwr_dashboard.runs import LOG, Library, alive
from flwr_dashboard.state import standing

MAX_PAGES = 32
"""Pages kept for other tabs."""
MAX_SCRAPED = 100
"""Runs in a scrape, the newest."""


class Dashboard:
    """Answers for one folder of runs."""

    def __init__(self, folder: Path) -> None:
        self.library = Library(folder)
        self._kept: OrderedDict[Ask, tuple[object, list[pages.Part]]] = OrderedDict()
        self._lock = threading.Lock()

    def page(self, request: Request) -> Response:
        """Answer with a page, or with what has changed of it since a tab last asked."""
        name = request.path_params.get("page", "")
        if name not in ("", "compare", *pages.TITLES):
            return _missing("There is no such page.")
        query = request.query_params
        ask = asked.read(name, query, query.getlist("id"))
        with self._lock:
            made, behind = self._parts(ask)
        if made is None:
            return _missing("There is no such run; it may have been removed.")
        have = query.get("have")
        if have is None:
            title = ask.id if name in pages.TITLES else "Compare" if name else "Runs"
            return HTMLResponse(pages.page(ask, made, title))
        fresh = pages.changed(made, have)
        headers = {"x-behind": "1"} if behind else {}
        return JSONResponse(fresh, headers=headers) if fresh else Response(None, 204, headers)

    def _parts(self, ask: Ask) -> tuple[list[pages.Part] | None, bool]:
        now = pages.today()
        stamp: object = now
        behind = False
        if ask.page in pages.TITLES:
            opened = self.library.open(ask.id)
            if opened is None:
                return None, False
            stamp, behind = (now, opened.version), opened.tail.behind
        kept = self._kept.get(ask)
        if kept is None or kept[0] != stamp:
            kept = self._kept[ask] = (stamp, self._make(ask, now))
        self._kept.move_to_end(ask)
        while len(self._kept) > MAX_PAGES:
            self._kept.popitem(last=False)
        return kept[1], behind

    def _make(self, ask: Ask, now: float) -> list[pages.Part]:
        if ask.page in pages.TITLES:
            scene = pages.scene(self.library, ask, now)
            assert scene is not None
            return pages.parts(scene)
        if ask.page == "compare":
            return pages.compare_parts(self.library, ask, now)
        return pages.list_parts(self.library, ask, now)

    def picture(self, request: Request) -> Response:
        """Answer with a round's sprite, or with how one client's images grow in it."""
        query = request.query_params
        ask = asked.read("", query, query.getlist("id"))
        with self._lock:
            opened = self.library.open(ask.id)
            this = opened.run.rounds.get(ask.round or 0) if opened else None
        growth = request.url.path.endswith("growth")
        found = this and (this.growth.get(ask.client) if growth else this.sprite)
        data = pictures.read(opened.folder, found.path) if opened and found else None
        if data is None:
            return _missing("There is no such picture.")
        # Its address holds its time, so that another picture has another address.
        headers = {"cache-control": "private, max-age=3600"}
        return Response(data, media_type="image/png", headers=headers)

    def download(self, request: Request) -> Response:
        """Answer with a run's log or numbers as a file."""
        name = request.path_params["file"]
        query = request.query_params
        with self._lock:
            opened = self.library.open(query.get("id", ""))
            if opened is None or name not in _FILES:
                return _missing("There is no such file.")
            if name == "report.html":
                text = report.write(self.library, opened.id)
            elif name != LOG:
                text = _FILES[name][1](runs.whole(self.library, opened.id))
        kind = _FILES[name][0]
        if name == LOG:
            path = opened.folder / LOG
            if not path.is_file() or path.is_symlink():
                return _missing("The log is gone.")
            return FileResponse(path, media_type=kind, filename=name)
        headers = {"content-disposition": f'attachment; filename="{name}"'}
        return Response(text, media_type=kind, headers=headers)

    def metrics(self, request: Request) -> Response:
        """Answer a scrape of Prometheus': followed runs in full, others as their logs' ends say.

        A running run is followed, and so is one that a page has shown, until others take its place.
        """
        now = time.time()
        with self._lock:
            found = []
            for place in self.library.places()[:MAX_SCRAPED]:
                summary = self.library.summary(place, now)
                goes_on = summary.standing.key in ("running", "waiting")
                followed = goes_on or self.library.follows(summary.id)
                opened = self.library.open(summary.id) if followed else None
                run = runs.whole(self.library, opened.id) if opened else summary.run
                found.append((summary.id, run, standing(run, now, alive=alive(run))))
            text = metrics.scrape(found)
        return PlainTextResponse(text, headers={"content-type": metrics.CONTENT_TYPE})


_FILES: dict[str, tuple[str, Callable[..., str]]] = {
    LOG: ("application/x-ndjson", str),
    "rounds.csv": ("text/csv; charset=utf-8", downloads.rounds_csv),
    "clients.csv": ("text/csv; charset=utf-8", downloads.clients_csv),
    "run.json": ("application/json", downloads.run_json),
    "report.html": ("text/html; charset=utf-8", str),
}


def _missing(why: str) -> Response:
    return PlainTextResponse(f"{why}\n", status_code=404)


def build(folder: Path, *, token: str, names: Sequence[str] = (), cookie: str = "flwr") -> ASGIApp:
    """Return the dashboard of ``folder`` as an ASGI application, guarded by ``token``."""
    dashboard = Dashboard(folder)
    app = Starlette(
        routes=[
            Route("/", dashboard.page),
            Route("/sprite", dashboard.picture),
            Route("/growth", dashboard.picture),
            Route("/metrics", dashboard.metrics),
            Route("/download/{file}", dashboard.download),
            Mount("/static", StaticFiles(packages=[("flwr_dashboard", "static")])),
            Route("/{page}", dashboard.page),
        ]
    )
    return Guard(app, token=token, names=names, cookie=cookie)
