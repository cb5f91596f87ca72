"""A browser for the dashboard's tests: it reaches this machine alone and notes what goes wrong.

Wants Playwright and Chromium at ``$CHROMIUM`` or on the path; says what is missing.
"""

import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib.resources import files

import pytest

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = os.environ.get("CHROMIUM") or shutil.which("chromium") or ""
marks = [
    pytest.mark.slow,
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM, reason="Chromium is not installed"),
]
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"]
FLAGS += ["--disable-background-networking", "--disable-component-update"]
# No other host has an address.
FLAGS += ["--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"]
LOOKS = [(width, scheme) for width in (1280, 390) for scheme in ("light", "dark")]


@contextmanager
def chromium():
    with sync_api.sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)


@contextmanager
def serving(folder, token="t"):
    """Start the command; give the address that it prints, without the token."""
    command = [sys.executable, "-m", "flwr_dashboard", str(folder), "--port", "0"]
    server = subprocess.Popen([*command, "--token", token], stdout=subprocess.PIPE, text=True)
    try:
        yield re.search(r"http://\S+/", server.stdout.readline())[0]
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


class Visit:
    """A page of a browser that notes everything that should not happen."""

    def __init__(self, browser, width=1280, scheme="light"):
        size = {"width": width, "height": 900}
        self.context = browser.new_context(viewport=size, color_scheme=scheme)
        self.page = self.context.new_page()
        self.wrong, self.asked = [], []
        self.page.on("console", lambda m: self.wrong.append(m.text) if m.type == "error" else None)
        self.page.on("pageerror", lambda error: self.wrong.append(str(error)))
        # All of the context's, whichever tab or frame asks.
        self.context.on("request", lambda request: self.asked.append(request.url))

    def close(self, *allowed):
        """Close, and complain of errors and of every request to anywhere but ``allowed``."""
        self.context.close()
        assert self.wrong == []
        assert [url for url in self.asked if not url.startswith((*allowed, "data:"))] == []


def faults(page):
    """Return what axe-core finds in a page as it is, in words."""
    pytest.importorskip("axe_playwright_python", reason="axe-core is not installed")
    # Through the debugger, which the page's content policy does not bind.
    page.evaluate(files("axe_playwright_python").joinpath("axe.min.js").read_text())
    found = page.evaluate("async () => (await axe.run()).violations")
    return [f"{v['id']}: {n['html'][:200]}" for v in found for n in v["nodes"][:2]]


def check_looks(browser, address, paths):
    """Open every page at both widths and in both themes: it fits, and axe-core finds nothing."""
    found = {}
    for width, scheme in LOOKS:
        visit = Visit(browser, width, scheme)
        visit.page.goto(f"{address}?token=t")
        for path in paths:
            visit.page.goto(address + path)
            for details in visit.page.locator("details").all():
                details.evaluate("d => { d.open = true }")
            wide = visit.page.evaluate("document.documentElement.scrollWidth")
            said = [f"{wide} pixels wide"] if wide > width else []
            said += [] if visit.page.locator("h1").count() == 1 else ["not one h1"]
            if said := said + faults(visit.page):
                found[path, width, scheme] = said
        visit.close(address)
    assert found == {}
