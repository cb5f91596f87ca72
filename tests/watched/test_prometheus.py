"""A real Prometheus scrapes a run while it goes on, and every panel's query finds its figures."""

import json
import re
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from contextlib import contextmanager
from itertools import combinations
from pathlib import Path

import pytest
from inprocess_run import run
from ports import free_ports

from flwr_dashboard.metrics import families

MONITORING = Path(__file__).resolve().parents[2] / "deploy" / "monitoring"
GRAFANA = json.loads((MONITORING / "grafana" / "dashboards" / "flower-runs.json").read_text())
QUERIES = {
    f"{panel['title']}, {target['legendFormat']}": target["expr"]
    for panel in GRAFANA["panels"]
    for target in panel["targets"]
}
PROMETHEUS, PROMTOOL = shutil.which("prometheus"), shutil.which("promtool")
needs_prometheus = pytest.mark.skipif(
    not PROMETHEUS or not PROMTOOL,
    reason="Prometheus is not installed (Debian and Ubuntu: apt-get install prometheus)",
)


def test_every_query_asks_for_figures_that_there_are():
    asked = {name for query in QUERIES.values() for name in re.findall(r"flwr_\w+", query)}
    assert asked == set(families())
    assert len(QUERIES) >= len(GRAFANA["panels"])


def test_panels_do_not_cover_each_other():
    assert len({panel["id"] for panel in GRAFANA["panels"]}) == len(GRAFANA["panels"])
    places = [panel["gridPos"] for panel in GRAFANA["panels"]]
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y, (a, b)
    assert all(place["x"] + place["w"] <= 24 for place in places)


class Prometheus:
    def __init__(self, port):
        self._at = f"http://127.0.0.1:{port}"
        self.began = time.time()

    def ready(self):
        with urllib.request.urlopen(f"{self._at}/-/ready", timeout=5) as answer:
            return answer.status == 200

    def watches(self):
        """Whether it knows of a target: it hands itself those of its file every 5 seconds."""
        with urllib.request.urlopen(f"{self._at}/api/v1/targets", timeout=5) as answer:
            return bool(json.load(answer)["data"]["activeTargets"])

    def series(self, query):
        """Return the series that ``query`` had, each with its values, since Prometheus began."""
        asked = {"query": query, "start": self.began, "end": time.time(), "step": "0.25"}
        url = f"{self._at}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            said = json.load(answer)
        assert said["status"] == "success"
        return [
            (s["metric"], [float(value) for _, value in s["values"]])
            for s in said["data"]["result"]
        ]


@contextmanager
def prometheus(folder, metrics_port):
    """Run Prometheus by the file of deploy/monitoring/, but for the port and the pace."""
    [port] = free_ports(1)
    config = (MONITORING / "prometheus.yml").read_text()
    assert config.count("127.0.0.1:9464") == config.count("scrape_interval: 5s") == 1
    config = config.replace("127.0.0.1:9464", f"127.0.0.1:{metrics_port}")
    config = config.replace("scrape_interval: 5s", "scrape_interval: 250ms")
    (folder / "prometheus.yml").write_text(config)
    command = [
        PROMETHEUS,
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(command, stdout=log, stderr=log) as process,
    ):
        try:
            server, until = Prometheus(port), time.monotonic() + 60
            while True:
                try:
                    if server.ready() and server.watches():
                        break
                except OSError:
                    assert process.poll() is None, (folder / "log").read_text()
                assert time.monotonic() < until, "Prometheus does not start"
                time.sleep(0.1)
            server.began = time.time()
            yield server
        finally:
            process.terminate()


@needs_prometheus
def test_the_config_of_prometheus_is_sound():
    command = [PROMTOOL, "check", "config", str(MONITORING / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_prometheus
@pytest.mark.slow
def test_every_panel_finds_its_figures_in_a_live_run(tmp_path, monkeypatch):
    monkeypatch.setattr("feddgm_flwr.monitoring.events.BEAT_S", 0.2)
    [port] = free_ports(1)
    (tmp_path / "prometheus").mkdir()
    with prometheus(tmp_path / "prometheus", port) as server:
        ended = run(
            tmp_path / "run",
            num_server_rounds=3,
            prior__kind="glyphs",
            start__control=True,
            distill__iterations=6,
            watch__metrics_port=port,
        )
        found = {
            name: server.series(query.replace("$run", ".*").replace("$__rate_interval", "60s"))
            for name, query in QUERIES.items()
        }
        scored = server.series("flwr_run_accuracy")
    assert [name for name, series in found.items() if not series] == []
    told = {e["accuracy"]["surrogate"] for e in ended.of("scored")}
    for labels, values in scored:
        assert labels["run"] == "run"
        assert labels["model"] == "surrogate"
        assert set(values) <= told
    # How many rounds are met depends on how long they last; one at least is.
    assert any(values for _, values in scored)
    [(_, rounds)] = found["Round, of"]
    assert set(rounds) == {3.0}
    [(_, done)] = found["Round, done"]
    assert done == sorted(done)
    states = {labels["state"] for labels, _ in found["State, {{state}}"]}
    assert "running" in states
