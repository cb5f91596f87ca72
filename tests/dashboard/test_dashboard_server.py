"""The dashboard over HTTP: what it shows, to whom, and what it refuses."""

import html
import json
import os
import re
import socket
import subprocess
import sys
import time
from pathlib import Path

import dashboard_logs as logs
import pytest

pytest.importorskip("starlette", reason="the dashboard is not installed")

from starlette.testclient import TestClient

from flwr_dashboard import runs, server
from flwr_dashboard.cli import main
from flwr_dashboard.guard import HEADERS

PAGES = ("run", "federation", "images", "time", "config", "log")
LOCAL = "http://127.0.0.1:8351"


@pytest.fixture
def folder(tmp_path):
    logs.write(tmp_path / "first")
    logs.write(tmp_path / "deep" / "second", logs.whole(late=[1], ended=False))
    return tmp_path


@pytest.fixture
def client(folder):
    return signed_in(folder)


def signed_in(folder):
    app = server.build(folder, token="secret", names=["lab.example"])
    client = TestClient(app, base_url=LOCAL)
    client.headers["authorization"] = "Bearer secret"
    return client


def text_of(page):
    return html.unescape(re.sub(r"<[^>]*>", " ", page))


def stamps(page):
    return ",".join(
        f"{a}:{b}" for a, b in re.findall(r'id="([\w-]+)" data-part data-hash="(\w+)"', page)
    )


def test_the_list_says_what_there_is(client):
    page = text_of(client.get("/").text)
    assert "2 runs" in page
    assert "deep/second" in page
    assert "80.0 %" in page
    assert "3 of 3" in page
    assert "stopped without saying so" in page


def test_the_list_is_searched(client):
    page = text_of(client.get("/?find=deep+fed").text)
    assert "1 of 2 runs" in page
    assert "No run fits." in client.get("/?find=nothing").text


def test_a_run_at_first_glance(client):
    page = text_of(client.get("/run?id=first").text)
    for said in (
        "completed",
        "3 of 3",
        "80.0 %",
        "+30.0 pts",
        "3.0 MB",
        "distilled, loss 1.000 → 0.500",
    ):
        assert said in page, said
    warned = text_of(client.get("/run?id=deep/second").text)
    assert "client 1 set aside (late): no reply within 9 s" in warned


@pytest.mark.parametrize("page", PAGES)
def test_every_page_of_a_run_has_one_heading_and_no_inline_code(client, page):
    answer = client.get(f"/{page}?id=first&client=0&round=2")
    assert answer.status_code == 200
    assert answer.text.count("<h1>") == 1
    assert " style=" not in answer.text
    assert "<script>" not in answer.text
    assert not re.search(r"\son\w+=", answer.text)
    assert not re.search(r'(?:href|src)="(?:[a-z]+:|/)', answer.text), "an address is not relative"


def test_a_tab_gets_only_what_has_changed(client, folder):
    page = client.get("/run?id=deep/second").text
    have = stamps(page)
    time.sleep(runs.REFRESH_S + 0.05)
    again = client.get("/run", params={"id": "deep/second", "have": have})
    assert again.status_code in (200, 204)
    assert "accuracy" not in (again.json() if again.status_code == 200 else {})
    with (folder / "deep/second/events.jsonl").open("a") as file:
        file.writelines(f"{x}\n" for x in logs.round_of(4, 0.9, began=100))
    time.sleep(runs.REFRESH_S + 0.05)
    fresh = client.get("/run", params={"id": "deep/second", "have": have}).json()
    assert {"accuracy", "tiles", "time", "newest"} <= fresh.keys()
    assert "90.0 %" in fresh["tiles"]["html"]
    assert fresh["newest"]["html"] == "1 4"


def test_nothing_new_is_no_content(client):
    have = stamps(client.get("/config?id=first").text)
    assert client.get("/config", params={"id": "first", "have": have}).status_code == 204


def test_images_are_cut_out_of_the_rounds_sprite(client):
    page = client.get("/images?id=first&round=2&client=1").text
    assert "Distilled images, round 2" in text_of(page)
    assert '<image id="s2" href="sprite?id=first&amp;round=2' in page
    assert 'aria-label="client 1, class dog, round 2"><use href="#s2" x="-2" y="-0"/>' in page
    changed = client.get("/images?id=first&round=2&changed=1").text
    assert '<use class="before" href="#s1" x="-2" y="-0"/>' in changed


def test_images_grow_within_a_round(client):
    page = client.get("/images?id=first").text
    assert "from left to right after 0, 2, 5 iterations" in text_of(page)
    assert 'aria-label="client 0, class cat, iteration 5"><use href="#g0" x="-0" y="-4"/>' in page
    assert client.get("/growth?id=first&round=2&client=0").content == logs.png(2, 6, 50)


def test_pictures_come_from_the_runs_folder_only(client, folder):
    assert client.get("/sprite?id=first&round=2").content == logs.png(4, 2, 120)
    secret = folder / "secret.png"
    secret.write_bytes(logs.png(1, 1, 9))
    (folder / "first/images/link.png").symlink_to(secret)
    (folder / "first/images/text.png").write_text("no picture")
    os.mkfifo(folder / "first/images/pipe.png")
    paths = ["../secret.png", "images/../../secret.png", str(secret), "images/link.png", "images"]
    paths += ["images/text.png", "images/pipe.png", "events.jsonl", "images/sprite_1.png\n", ""]
    sprite = {"side": 1, "across": 1, "owners": [0], "labels": [0], "weights": [1.0]}
    for number, path in enumerate(paths, start=5):
        with (folder / "first/events.jsonl").open("a") as file:
            said = logs.line("sprite-written", 99, number, path=path, num_images=1, **sprite)
            file.write(said + "\n")
    time.sleep(runs.REFRESH_S + 0.05)
    for number, path in enumerate(paths, start=5):
        assert client.get(f"/sprite?id=first&round={number}").status_code == 404, path


@pytest.mark.parametrize(
    "name", ["../first", "..", "/etc", "first/../first", "first/images", "nix", ""]
)
def test_only_a_run_of_the_list_is_shown(client, name):
    for page in (*PAGES, "sprite", "download/events.jsonl"):
        assert client.get(f"/{page}", params={"id": name, "round": 1}).status_code == 404


@pytest.mark.parametrize(
    "path", ["/static/../guard.py", "/static/%2e%2e/guard.py", "/nix", "/../etc"]
)
def test_no_other_file_is_given(client, path):
    assert client.get(path).status_code == 404


def test_whoever_lacks_the_token_sees_nothing(folder):
    stranger = TestClient(server.build(folder, token="secret"), base_url=LOCAL)
    for path in ("/", "/run?id=first", "/metrics", "/static/live.js", "/?token=guess", "/?token="):
        answer = stranger.get(path)
        assert answer.status_code == 403
        assert "first" not in answer.text
    assert stranger.get("/", headers={"authorization": "Bearer guess"}).status_code == 403


def test_the_printed_address_signs_in_and_hides_the_token(folder):
    visitor = TestClient(server.build(folder, token="secret"), base_url=LOCAL)
    answer = visitor.get("/run?id=deep/second&token=secret", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (303, "./run?id=deep%2Fsecond")
    assert "httponly" in answer.headers["set-cookie"].lower()
    assert "samesite=strict" in answer.headers["set-cookie"].lower()
    assert visitor.get("/").status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil", "a:8351"]
)
def test_another_host_name_is_refused(client, host):
    assert client.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "host", ["localhost:8351", "127.0.0.1", "[::1]:8351", "LAB.example", "10.1.2.3:80"]
)
def test_its_own_names_are_known(client, host):
    assert client.get("/", headers={"host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"origin": "http://["},
        {"origin": "http://127.0.0.1:9999"},
        {"sec-fetch-site": "cross-site", "sec-fetch-mode": "no-cors"},
        {"sec-fetch-site": "same-site", "sec-fetch-mode": "cors"},
    ],
)
def test_another_sites_page_reads_nothing(client, headers):
    assert client.get("/run?id=first", headers=headers).status_code == 403
    assert (
        client.get("/", headers={"origin": LOCAL, "sec-fetch-site": "same-origin"}).status_code
        == 200
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_shows(client, method):
    assert client.request(method, "/run?id=first").status_code == 405


def test_every_answer_has_the_headers(client):
    for path in ("/", "/nix", "/metrics", "/static/style.css", "/sprite?id=first&round=1"):
        answer = client.get(path)
        for name, value in HEADERS.items():
            assert answer.headers[name] == value
    assert "access-control-allow-origin" not in client.get("/").headers


NASTY = "<img src=x onerror=alert(1)>\"'&\x00\x1b[31m\u202e{{1234*5}}"


def test_a_text_of_a_log_is_never_markup(tmp_path):
    name = "a<b>&'\"{{1234*5}}"
    said = {
        "method": NASTY,
        "config": {NASTY: NASTY, "data.name": NASTY},
        "classes": [NASTY, NASTY],
    }
    said |= {"machine": {"host": NASTY, NASTY: NASTY}, "versions": {NASTY: NASTY}, "seed": NASTY}
    lines = [logs.start(**said, flower_run=NASTY), *logs.whole()[1:]]
    lines += [logs.line("client-asked", 90, 3, partition_id=NASTY, phase="clients")]
    bad = {"partition_id": NASTY, "reply": NASTY, "reason": NASTY}
    lines += [logs.line("client-rejected", 90, 3, **bad), logs.line(NASTY, 91, 3, **{"f": NASTY})]
    lines += [logs.line("clients-online", 91, 3, nodes={NASTY: NASTY}, left_out={NASTY: NASTY})]
    lines += [logs.line("phase-end", 91, 3, phase=NASTY, seconds=3.0)]
    lines += [logs.line("phase-start", 91, 3, phase=NASTY)]
    lines += [logs.line("train-progress", 91, 3, model=NASTY, epoch=1, epochs=2, loss=1.0)]
    scores = {"accuracy": {NASTY: 0.5}, "loss": {NASTY: 0.5}, "metrics": {}}
    lines += [logs.line("control-scored", 92, 3, **scores), logs.line("scored", 92, 3, **scores)]
    lines += [logs.line("run-end", 95, 3, status="failed", reason=NASTY)]
    logs.write(tmp_path / name, lines)
    logs.write(tmp_path / "other")
    client = signed_in(tmp_path)
    answers = [client.get("/"), client.get("/", params={"find": NASTY})]
    answers += [client.get(f"/{p}", params={"id": name, "client": NASTY}) for p in PAGES]
    answers += [client.get("/compare", params={"id": [name, "other"]})]
    answers += [client.get("/download/report.html", params={"id": name})]
    for answer in answers:
        assert answer.status_code == 200
        assert "<img src=x" not in answer.text
        assert not re.search(r"[\x00-\x08\x0b-\x1f\u202e]", answer.text)
        assert "6170" not in answer.text


def test_a_log_cut_anywhere_makes_a_page(tmp_path):
    whole = "".join(f"{x}\n" for x in logs.whole(late=[1])).encode()
    logs.write(tmp_path / "cut")
    path = tmp_path / "cut/events.jsonl"
    dashboard = server.Dashboard(tmp_path)
    from flwr_dashboard import pages
    from flwr_dashboard.ask import Ask

    for end in range(0, len(whole), 7):
        path.write_bytes(whole[:end])
        library = runs.Library(tmp_path)
        assert [library.summary(place, 0.0).id for place in library.places()] == ["cut"]
        scene = pages.scene(library, Ask("run", ("cut",)), 0.0)
        assert scene.opened.tail.broken == 0
        if end % 203 == 0:
            assert all(isinstance(part.html, str) for part in pages.parts(scene))
    assert dashboard.library.folders().keys() == {"cut"}


def test_a_foreign_an_empty_and_a_vanished_log_are_said(tmp_path):
    for name, content in (("foreign", b"\x89PNG\x00\n" * 50), ("empty", b""), ("gone", b"{}\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "events.jsonl").write_bytes(content)
    client = signed_in(tmp_path)
    assert "50 lines of the log left out" in text_of(client.get("/run?id=foreign").text)
    assert "nothing told yet" in text_of(client.get("/run?id=empty").text)
    client.get("/run?id=gone")
    (tmp_path / "gone/events.jsonl").unlink()
    time.sleep(runs.REFRESH_S + 0.05)
    assert "The log cannot be read" in text_of(client.get("/run?id=gone").text)
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "result",
    [
        '{"initial": {"accuracy": {"a": NaN}}, "rounds": [{"round": 1, "accuracy": {"a": 1e308}}]}',
        '{"initial": {"accuracy": {"a": 1}}, "rounds": [{"round": Infinity, "accuracy": 1}]}',
        '{"initial": {"accuracy": {"a": 1}}, "rounds": [{"round": 1e999, "accuracy": {"a": 1}}]}',
        '{"initial": {"accuracy": {}}, "rounds": [{"round": "2", "accuracy": {}}, 3]}',
        '{"initial": {"accuracy": {}}, "rounds": [{"round": -' + "9" * 5000 + "}]}",
        '{"initial": {"accuracy": [1]}, "rounds": {"a": 1}}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_results_that_make_no_sense_do_not_hide_the_list(folder, result):
    (folder / "first" / "result.json").write_text(result)
    client = signed_in(folder)
    assert "2 runs" in text_of(client.get("/").text)
    assert "nan" not in text_of(client.get("/?find=first").text)


def test_an_unreadable_folder_does_not_hide_the_others(folder):
    (folder / "loop").symlink_to(folder)
    (folder / "file").write_text("")
    (folder / "odd\udcff").mkdir()
    logs.write(folder / "odd\udcff" / "run\n")
    client = signed_in(folder)
    page = client.get("/")
    assert "3 runs" in text_of(page.text)
    (odd,) = re.findall(r'href="(run\?id=odd[^"]*)"', page.text)
    assert client.get("/" + html.unescape(odd)).status_code == 200


def test_compare_marks_the_best_and_names_what_differs(tmp_path):
    logs.write(tmp_path / "a")
    other = [logs.start(config={"data.name": "mnist5k", "recipe": "paper"}), *logs.whole()[1:]]
    logs.write(tmp_path / "b", [x.replace('"surrogate": 0.8', '"surrogate": 0.9') for x in other])
    page = signed_in(tmp_path).get("/compare?id=a&id=b").text
    assert "<strong>90.0 %</strong>" in page
    assert "recipe" in text_of(page)
    assert "data.name" not in text_of(page)
    assert "Nothing to compare" in text_of(signed_in(tmp_path).get("/compare?id=a").text)


def test_runs_that_differ_in_their_seed_have_a_mean_and_a_spread(tmp_path):
    for seed, best in ((0, "0.8"), (1, "0.9")):
        lines = [logs.start(config={"seed": seed}), *logs.whole()[1:]]
        lines = [x.replace('"surrogate": 0.8', f'"surrogate": {best}') for x in lines]
        logs.write(tmp_path / f"s{seed}", lines)
    page = text_of(signed_in(tmp_path).get("/compare?id=s0&id=s1").text)
    # Mean of 0.8 and 0.9, and the standard deviation 0.05 * sqrt(2).
    assert "best accuracy 85.0 % ± 7.1 points" in page


def test_a_run_keeps_its_colour(tmp_path):
    for age, name in enumerate(("b", "a")):
        lines = [x.replace(str(int(logs.T0)), str(int(logs.T0) + age)) for x in logs.whole()]
        logs.write(
            tmp_path / name, [lines[0].replace("1700000000.0", f"{logs.T0 + age}"), *lines[1:]]
        )
    client = signed_in(tmp_path)
    assert '<g class="line c1 d0">' in client.get("/run?id=a").text
    assert '<g class="line c0 d0">' in client.get("/run?id=b").text
    assert client.get("/").text.index("line c1 d0") < client.get("/").text.index("line c0 d0")


def test_files_to_take_along(client, folder):
    assert (
        client.get("/download/events.jsonl?id=first").text
        == (folder / "first/events.jsonl").read_text()
    )
    assert json.loads(client.get("/download/run.json?id=first").text)["rounds_planned"] == 3
    for name in ("rounds.csv", "clients.csv", "report.html"):
        answer = client.get(f"/download/{name}?id=first")
        assert f'filename="{name}"' in answer.headers["content-disposition"]


def long_log(folder, *, rounds=100, ended=True, pid=4):
    """Write a run of many rounds whose best, 90 %, is in the middle of a log of over 10 MB."""
    lines = [logs.start(rounds=rounds, pid=pid, machine={"host": socket.gethostname()})]
    for number in range(1, rounds + 1):
        best = 0.9 if number == rounds // 2 else 0.2
        lines += logs.round_of(number, best, began=30.0 * number)
        lines.append(logs.line("coffee-made", 30.0 * number, number, beans="x" * 120_000))
    lines.append(logs.line("heartbeat", 30.0 * rounds + 31, rounds, pid=os.getpid(), load={}))
    if ended:
        lines.append(logs.line("run-end", 30.0 * rounds + 40, rounds, status="completed"))
    logs.write(folder, lines)


def test_a_long_log_is_taken_along_whole(tmp_path):
    long_log(tmp_path / "a")
    client = signed_in(tmp_path)
    assert len(client.get("/download/rounds.csv?id=a").text.splitlines()) == 101
    assert len(json.loads(client.get("/download/run.json?id=a").text)["rounds"]) == 100


def test_a_long_log_is_scraped_whole_while_its_run_goes_on(tmp_path, monkeypatch):
    long_log(tmp_path / "a", ended=False)
    last = logs.T0 + 30.0 * 100 + 31
    monkeypatch.setattr("time.time", lambda: last + 5)
    text = signed_in(tmp_path).get("/metrics").text
    # The first process of the log is none of this machine's; the heartbeat's is.
    assert 'flwr_run_state{run="a",state="running"} 1.0' in text
    assert 'flwr_run_round{run="a"} 100.0' in text
    assert 'flwr_run_best_accuracy{run="a"} 0.9' in text


def test_a_long_log_that_nobody_opened_has_no_best_in_a_scrape_and_a_least_in_the_list(tmp_path):
    long_log(tmp_path / "a")
    client = signed_in(tmp_path)
    assert "flwr_run_best_accuracy" not in client.get("/metrics").text
    assert "≥ 20.0 %" in text_of(client.get("/").text)
    client.get("/download/run.json?id=a")
    assert 'flwr_run_best_accuracy{run="a"} 0.9' in client.get("/metrics").text


def test_rounds_before_the_present_one_are_done(tmp_path):
    lines = [logs.start(), *logs.round_of(1, 0.5, began=1.0)]
    noise = {"partition_id": 0, "iteration": 1, "iterations": 9, "loss": 0.5}
    lines += [logs.line("distill-progress", 200 + i, 3, **noise) for i in range(400)]
    logs.write(tmp_path / "a", lines)
    assert "2 of 3" in text_of(signed_in(tmp_path).get("/").text)


def test_metrics_tell_of_every_run(client):
    text = client.get("/metrics").text
    assert 'flwr_run_state{run="first",state="completed"} 1.0' in text
    assert 'flwr_run_best_accuracy{run="deep/second"} 0.8' in text


def test_the_report_asks_for_nothing(client, tmp_path, folder, capsys):
    out = tmp_path / "out.html"
    assert main([str(folder), "--report", str(out), "--run", "first"]) == 0
    page = out.read_text()
    assert page.count("data:image/png;base64,") == 3
    assert not re.findall(r'(?:href|src)="(?!#|data:)[^"]*"', page)
    assert "url(" not in page
    assert "80.0 %" in text_of(page)
    assert "report of first" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["/nix"], "must be a folder of runs"),
        (["{}", "--host", "0.0.0.0"], "opens the dashboard to the network"),
        (["{}", "--host", "256.1.1.1", "--token", "x"], "cannot be listened on"),
        (["{}", "--report", "{}/nix/out.html"], "cannot be written"),
        (["{}", "--report", "{}/out.html", "--run", "nix"], "there is no run 'nix'"),
        (["{}/first/images", "--report", "{}/out.html"], "holds no run"),
    ],
)
def test_a_wrong_argument_is_one_sentence(folder, capsys, arguments, said):
    assert main([a.replace("{}", str(folder)) for a in arguments]) == 1
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_it_starts_without_what_trains():
    script = "import sys, flwr_dashboard.server, flwr_dashboard.report; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    heavy = {"torch", "numpy", "flwr", "feddgm_flwr", "matplotlib", "tensorboard"}
    assert heavy & {name.split(".")[0] for name in ran.stdout.split()} == set()


def test_the_javascript_is_at_most_sixty_lines():
    static = Path(server.__file__).parent / "static"
    assert sum(len(f.read_text().splitlines()) for f in static.glob("*.js")) <= 60


def test_five_hundred_runs_are_listed_a_hundred_a_page(tmp_path):
    for number in range(120):
        (tmp_path / f"r{number:03d}").mkdir()
        (tmp_path / f"r{number:03d}/events.jsonl").write_text(logs.start() + "\n")
    page = signed_in(tmp_path).get("/").text
    assert page.count('type="checkbox"') == 100
    assert "120 runs" in text_of(page)
    assert "101–120" in text_of(page)


def test_what_is_kept_is_bounded(tmp_path, monkeypatch):
    for number in range(4):
        logs.write(tmp_path / f"r{number}")
    monkeypatch.setattr(runs, "MAX_OPEN", 2)
    monkeypatch.setattr(server, "MAX_PAGES", 3)
    dashboard = server.Dashboard(tmp_path)
    client = TestClient(server.build(tmp_path, token="t"), base_url=LOCAL)
    assert client.get("/").status_code == 403
    from flwr_dashboard.ask import Ask

    for number in range(4):
        for page in PAGES:
            dashboard._parts(Ask(page, (f"r{number}",)))
    assert len(dashboard.library._opened) == 2
    assert len(dashboard._kept) == 3
