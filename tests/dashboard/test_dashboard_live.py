"""A whole run seen in a real browser while it goes on, simulated and deployed over TLS.

Every figure of the pages is compared with what the log said in the last seconds, told here anew
from its lines; every page and control is used meanwhile.
"""

import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import dashboard_logs as logs
import pytest
from browsing import Visit, check_looks, chromium, marks, serving, sync_api

pytestmark = marks
ROOT = Path(__file__).resolve().parents[2]
LAG_S = 6.0
"""How old what a page shows may be, on a busy machine; it asks each second."""
SETTINGS = (
    "num-server-rounds=14 distill.iterations=30 distill.warm-iterations=30 watch.growing=1 "
    "distill.engine='serial'"
)
PAGES = ["run", "federation", "images", "time", "config", "log"]

until = sync_api.expect


@contextmanager
def running(script, folder):
    """Start a run of two clients by a script of deploy/; stop it, if need be, at the end."""
    command = ["bash", str(ROOT / "deploy" / script), str(folder / "work"), "2"]
    command += ["-c", str(ROOT / "conf" / "smoke.toml"), "-c", SETTINGS.replace("'", '"')]
    command += ["-c", f'out-dir="{folder / "runs" / "live"}"']
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    env = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    with (folder / "output").open("w") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=env, stdout=output, stderr=output, start_new_session=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                # The script, and what it waits for; it then stops what it started.
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(60)


def share(value):
    return f"{100 * value:.1f} %"


def size(count):
    scales = [(1e6, "MB"), (1e3, "kB")]
    return next((f"{count / n:.1f} {unit}" for n, unit in scales if count >= n), f"{count} B")


def spell(seconds):
    return f"{seconds:.1f} s" if seconds < 9.95 else f"{round(seconds)} s"


def of(events, *kinds):
    return [e for e in events if e["kind"] in kinds]


class Log:
    """What a run has told, as the tests read it."""

    def __init__(self, path):
        self.path = path

    def events(self):
        return [json.loads(x) for x in self.path.read_text().split("\n")[:-1]]

    def lately(self):
        """Return what the log said at each moment of the last seconds, the oldest first."""
        events = self.events()
        old = sum(e["time"] < time.time() - LAG_S for e in events)
        return [events[:end] for end in range(max(old, 1), len(events) + 1)]

    def ended(self):
        return bool(of(self.events(), "run-end"))


def tiles(events):
    """Return the figures of the tiles, but for the time, which runs on."""
    ends = of(events, "round-end")
    control = of(events, "control-scored")
    scores = {e["round"]: e["accuracy"]["surrogate"] for e in of(events, "scored", "round-end")}
    best = max(scores.values(), default=None)
    online = [len(e["nodes"]) for e in of(events, "clients-online")]
    online += [e["online"] for e in of(events, "round-start")]
    up, down = (sum(e[way] for e in ends) for way in ("bytes_up", "bytes_down"))
    return [
        f"{ends[-1]['round'] if ends else 0} of {events[0]['rounds']}",
        share(best) if best is not None else "–",
        "–" if best is None or not control
        else f"{100 * (best - control[-1]['accuracy']['surrogate']):+.1f} pts".replace("-", "−"),
        str(online[-1] if online else 0),
        str(len(of(events, "client-rejected"))),
        size(up),
        f"{size(down)} down",
    ]  # fmt: skip


READ_TILES = """() => {
    const said = [...document.querySelectorAll('.tile')].map(t => [...t.querySelectorAll('dd')]);
    return [...said.slice(0, 6).map(dd => dd[0].innerText), said[5][1].innerText];
}"""


def accuracies(events):
    scores = {e["round"]: e["accuracy"]["surrogate"] for e in of(events, "scored", "round-end")}
    return [[str(number), share(score)] for number, score in sorted(scores.items())]


ASKED = {"now": "trains", "examples": "–", "seconds": "–"}
DOES = {
    "client-asked": lambda e: ASKED,
    "reply-arrived": lambda e: {
        "now": "replied",
        "examples": f"{round(e['metrics']['num-examples']):,}",
        "seconds": spell(e["seconds"]),
    },
    "client-reply": lambda e: {
        "now": "replied",
        "examples": f"{e['num_examples']:,}",
        "seconds": spell(e["seconds"]),
    },
    "distill-progress": lambda e: {
        "now": f"distilling {e['iteration']}/{e['iterations']}, loss {e['loss']:.3f}"
    },
    "distilled": lambda e: {"now": f"distilled, loss {e['first_loss']:.3f} → {e['last_loss']:.3f}"},
}


def clients(events):
    """Return each client's row: its number, what it does, its examples and seconds."""
    rows = {}
    for e in events:
        if e["kind"] == "round-start":
            for row in rows.values():
                row["now"] = "idle"
        elif e["kind"] in DOES and e.get("phase") != "evaluate":
            row = rows.setdefault(e["partition_id"], {})
            row |= DOES[e["kind"]](e)
    return [[str(k), r["now"], r["examples"], r["seconds"]] for k, r in sorted(rows.items())]


READ_CLIENTS = """() => [...document.querySelectorAll('.clients tbody tr')].map(row => {
    const cells = [...row.children];
    const now = [...cells[2].childNodes].filter(n => n.nodeType === 3).map(n => n.data).join('');
    return [cells[0].innerText, now.trim(), cells[3].innerText, cells[4].innerText];
})"""


def seconds(events):
    """Return the seconds of each finished round by phase, those that the table has."""
    done = {0} | {e["round"] for e in of(events, "round-end")}
    spent = {}
    for e in of(events, "phase-end"):
        if e["round"] in done:
            row = spent.setdefault(e["round"], {})
            row[e["phase"]] = row.get(e["phase"], 0.0) + e["seconds"]
    return spent


READ_TABLE = """name => {
    const rows = [...document.querySelectorAll(`#${name} tr`)];
    return rows.map(row => [...row.children].map(cell => cell.textContent));
}"""


def watch(page, log, script, tell, argument=None):
    """Read a page's figures at once, and hold them against what the log said lately."""
    shown = page.evaluate(script, argument)
    told = [tell(events) for events in log.lately()]
    assert shown in told, (shown, told[-1])
    return shown


def watch_time(page, log):
    """The seconds of finished rounds; the present one's run on."""
    head, *rows = page.evaluate(READ_TABLE, "time-table")
    spent = seconds(log.events())
    for name, *values in rows:
        number = int(name.removeprefix("round ").replace("start", "0"))
        if (
            number in spent
            and int(rows[-1][0].removeprefix("round ").replace("start", "0")) > number
        ):
            told = [f"{spent[number].get(phase, 0):.1f}" for phase in head[1:-1]]
            assert [*told, f"{sum(spent[number].values()):.1f}"] == values, (number, values)


def watch_log(page, log):
    said = page.locator("#log .quiet").first.inner_text()
    count = int(re.search(r"of ([\d,]+), without", said)[1].replace(",", ""))
    assert count in [len(events) for events in log.lately()]


def watch_images(page, log, folder):
    """The newest round's images: as many as the log says, cut from the file that it names."""
    script = """() => [document.querySelector('#images h2').innerText,
        document.querySelector('#images .legend').innerText,
        document.querySelector('#images image').getAttribute('href')]"""
    title, legend, picture = page.evaluate(script)
    number = int(title.removeprefix("Distilled images, round "))
    [told] = [e for e in of(log.events(), "sprite-written") if e["round"] == number]
    assert legend == f"{told['num_images']} images of {len(set(told['owners']))} clients"
    got = page.evaluate(
        "async url => [...new Uint8Array(await (await fetch(url)).arrayBuffer())]", picture
    )
    assert bytes(got) == (folder / told["path"]).read_bytes()


def watch_config(page, log):
    script = """() => Object.fromEntries([...document.querySelectorAll('.settings section')]
        .flatMap(group => [...group.querySelectorAll('tr')].map(row => [
            `${group.querySelector('h3').innerText}.${row.children[0].innerText}`,
            row.children[1].innerText])))"""
    shown = page.evaluate(script)
    for key, value in log.events()[0]["config"].items():
        said = str(value).lower() if isinstance(value, bool) else str(value)
        assert shown[key if "." in key else f"run.{key}"] == (said or "–"), key


def watch_all(page, address, log, run="live"):
    """Look at every page of the run, and hold its figures against the log."""
    seen = []
    for name in PAGES:
        page.goto(f"{address}{name}?id={run}")
        for _ in range(2):
            if name == "run":
                seen.append(tuple(watch(page, log, READ_TILES, tiles)))
                table = "accuracy-table tbody"
                watch(page, log, READ_TABLE, accuracies, table)
            elif name == "federation":
                watch(page, log, READ_CLIENTS, clients)
            elif name == "images":
                watch_images(page, log, log.path.parent)
            elif name == "time":
                watch_time(page, log)
            elif name == "config":
                watch_config(page, log)
            else:
                watch_log(page, log)
            page.wait_for_timeout(600)
    return seen


def use_controls(visit, address, log):
    """Use every control of every page."""
    page = visit.page
    page.goto(address)
    page.keyboard.press("Tab")
    until(page.get_by_text("Skip to the content")).to_be_focused()
    page.get_by_label("Find").fill("no such run")
    until(page.locator("#runs .nothing")).to_have_text("No run fits.")
    page.get_by_label("Find").fill("live")
    until(page.locator("#runs h2")).to_have_text("1 of 2 runs")
    page.get_by_label("Find").fill("")
    page.get_by_label("compare live").check()
    page.get_by_label("compare other").check()
    page.get_by_role("button", name="Compare the ticked").click()
    until(page.locator("h1")).to_have_text("Compare")
    assert "Settings that differ" in page.locator("#table").inner_text()
    page.locator("input[name=round]").press("ArrowLeft")
    page.locator("#table thead a").first.click()
    until(page.locator("header nav [aria-current]")).to_have_text("Run")
    for axis in ("bytes", "seconds", "round"):
        page.get_by_role("navigation", name="Accuracy against").get_by_text(axis).click()
        until(page.locator("#accuracy [aria-current]")).to_have_text(axis)
    for name in ("Federation", "Images", "Time", "Config", "Log", "Run"):
        page.get_by_role("navigation", name="Pages of this run").get_by_text(name).click()
        until(page.locator("header nav [aria-current]")).to_have_text(name)
    page.goto(f"{address}run?id=live")
    page.locator(".clients tbody a").first.click()
    until(page.locator(".clients .chosen th")).to_have_text("0")
    page.goto(f"{address}time?id=live")
    page.locator("#time svg:visible a").nth(1).click()
    until(page.locator("#timeclients h2")).to_have_text("Clients in round 1")
    page.goto(f"{address}images?id=live")
    page.locator("input[name=round]").press("Home")
    until(page.locator("#images h2")).to_have_text("Distilled images, round 1")
    page.locator("#images tbody a").first.click()
    until(page.locator("#detail h2")).to_contain_text("Client 0, class")
    page.get_by_label("what changed").check()
    until(page.locator("#images h2")).to_have_text("What changed in round 1")
    page.get_by_role("button", name="Play").click()
    until(page.locator("#images h2")).to_have_text("What changed in round 2")
    page.get_by_role("button", name="Play").click()
    page.locator("#growing a").first.click()
    visit.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.goto(f"{address}config?id=live")
    page.locator("#as-lines summary").click()
    page.get_by_role("button", name="Copy").click()
    copied = page.evaluate("navigator.clipboard.readText()")
    assert "num-server-rounds = 14" in copied.splitlines()
    take_along(page, address, log)


def take_along(page, address, log):
    """Take every download; a file holds what the log said."""
    page.goto(f"{address}log?id=live")
    taken = {}
    for link in page.locator("#downloads a").all():
        with page.expect_download() as found:
            link.click()
        taken[found.value.suggested_filename] = found.value.path().read_text()
    assert log.path.read_text().startswith(taken["events.jsonl"])
    rounds = taken["rounds.csv"].splitlines()
    told = [[e["round"] for e in of(events, "round-end")] for events in log.lately()]
    assert [int(x.split(",")[0]) for x in rounds[2:]][: len(told[0])] == told[0]
    assert set(taken) == {"events.jsonl", "rounds.csv", "clients.csv", "run.json", "report.html"}
    assert json.loads(taken["run.json"])["method"] == "feddgm"
    assert "</html>" in taken["report.html"]


SHIFTS = """() => { window.shifts = []; new PerformanceObserver(list => {
    for (const e of list.getEntries()) window.shifts.push([e.value, e.hadRecentInput,
        e.sources.map(s => s.node?.parentElement?.id || s.node?.id || s.node?.className || '?')]);
}).observe({type: 'layout-shift'}); }"""


def stay(page, address, log, rounds=2):
    """Look at the page Run for some rounds: its figures are right, and nothing jumps."""
    page.goto(f"{address}run?id=live")
    page.evaluate(SHIFTS)
    first = len(of(log.events(), "round-end"))
    seen = set()
    while not log.ended() and len(of(log.events(), "round-end")) < first + rounds:
        seen.add(tuple(watch(page, log, READ_TILES, tiles)))
        page.wait_for_timeout(200)
    return seen, page.evaluate("window.shifts")


def check_result(page, address, log):
    """After the run: the page is what ``result.json`` says."""
    result = json.loads((log.path.parent / "result.json").read_text())
    page.goto(f"{address}run?id=live")
    until(page.locator("#state")).to_contain_text("completed")
    shown = page.evaluate(READ_TABLE, "accuracy-table tbody")
    scored = {0: result["initial"]["accuracy"]}
    scored |= {r["round"]: r["accuracy"] for r in result["rounds"]}
    assert shown == [[str(n), share(a["surrogate"])] for n, a in scored.items()]
    best = max(a["surrogate"] for a in scored.values())
    figures = page.evaluate(READ_TILES)
    assert figures[:2] == [f"{len(result['rounds'])} of 14", share(best)]
    assert figures[5] == size(sum(r["bytes_up"] for r in result["rounds"]))
    page.goto(address)
    cells = page.locator("#runs tr", has_text="live").locator("td, th").all_inner_texts()
    assert cells[3:7] == ["feddgm", "digits", "0.5", "0"]
    assert cells[8:10] == [share(best), "14 of 14"]


@pytest.fixture(scope="module")
def browser():
    with chromium() as browser:
        yield browser


@pytest.mark.parametrize("script", ["simulate.sh", "local.sh"])
def test_a_live_run_is_shown_as_its_log_tells(browser, script, tmp_path):
    runs = tmp_path / "runs"
    logs.write(runs / "other")
    log = Log(runs / "live" / "events.jsonl")
    with running(script, tmp_path) as process, serving(runs) as address:
        visit = Visit(browser)
        page = visit.page
        page.goto(f"{address}?token=t")
        until(page.locator("#runs h2")).to_have_text("1 run")
        # Appears by itself, without the page being loaded anew.
        until(page.locator("#runs h2")).to_have_text("2 runs", timeout=180_000)
        page.goto(f"{address}run?id=live")
        until(page.locator("#images h2")).to_contain_text("round 2", timeout=300_000)
        use_controls(visit, address, log)
        watch_all(page, address, log)
        seen, shifts = stay(page, address, log)
        assert not log.ended(), "the run was too short to be watched"
        assert len(seen) > 1
        assert sum(value for value, input_before, _ in shifts if not input_before) < 0.02, shifts
        paths = [f"{name}?id=live" for name in PAGES]
        check_looks(browser, address, ["", *paths, "compare?id=live&id=other"])
        output = tmp_path / "output"
        assert process.wait(300) == 0, output.read_text()[-3000:]
        watch_all(page, address, log)
        check_result(page, address, log)
        visit.close(address)
