"""What the dashboard costs on a large run: 200 clients x 100 rounds, eight tabs, 500 runs.

``python benchmarks/dashboard_scale.py [--clients 200] [--rounds 100] [--keep FOLDER]`` makes the
logs, starts the command, and prints, of the server: CPU seconds until it answers, the first page's
seconds and kB, every page's once the log is read, CPU ms of an update and RSS over 1,000 updates
with one tab and with eight, and the CPU seconds of a list of 500 runs. Wants Linux, for it reads
the server's CPU time and RSS from ``/proc``.
"""

import argparse
import json
import os
import random
import re
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TOKEN = "measure"
PAGES = ("run", "federation", "time", "log", "config", "images")


Event = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """How large a run is; ``drawn``: whether its rounds have a sprite of all its images."""

    clients: int
    rounds: int
    drawn: bool = True


def events(scale: Scale, *, ended: bool) -> Iterator[Event]:
    """Yield a run's events: every client asked, replied and distilled in every round."""
    rng = random.Random(0)
    owned = [sorted(rng.sample(range(10), 4)) for _ in range(scale.clients)]
    yield _start(scale)
    yield {"kind": "control-scored", "round": 0, "accuracy": {"surrogate": 0.5}}
    for number in range(1, scale.rounds + 1):
        for event in _round(scale, number, owned, rng):
            yield {"round": number, **event}
    if ended:
        yield {"kind": "run-end", "round": scale.rounds, "status": "completed", "reason": ""}


def _start(scale: Scale) -> Event:
    settings = {f"group{i % 12}.a-setting-{i}": i for i in range(112)}
    settings |= {"data.name": "mnist5k", "data.partition": "dirichlet", "data.alpha": 0.1}
    return {
        "kind": "run-start",
        "round": 0,
        "method": "feddgm",
        "rounds": scale.rounds,
        "seed": 0,
        "config": settings,
        "said": list(settings)[:5],
        "classes": [str(c) for c in range(10)],
        "machine": {"host": "scale"},
        "pid": 1,
    }


def _round(
    scale: Scale, number: int, owned: list[list[int]], rng: random.Random
) -> Iterator[Event]:
    """Yield a round's events, without its number."""
    everyone = list(range(scale.clients))
    yield {"kind": "round-start", "clients": everyone, "online": scale.clients}
    yield from _phase("clients", 9.0, _replies(scale, rng))
    yield from _phase("distill", 20.0, _distilled(owned, rng))
    for phase in ("learn", "score", "save"):
        yield from _phase(phase, 2.0, ())
    if scale.drawn:
        yield from _pictures(number, owned)
    yield {
        "kind": "round-end",
        "accuracy": {"surrogate": 0.9 - 0.4 * 0.95**number},
        "loss": {"surrogate": 0.5},
        "seconds": 35.0,
        "bytes_up": scale.clients * 90_000,
        "bytes_down": scale.clients * 90_000,
        "replies": {"accepted": scale.clients},
        "kept": "",
        "eta_s": (scale.rounds - number) * 35.0,
        "federated": None,
    }


def _phase(name: str, seconds: float, within: Iterable[Event]) -> Iterator[Event]:
    yield {"kind": "phase-start", "phase": name}
    yield from within
    yield {"kind": "phase-end", "phase": name, "seconds": seconds}


def _replies(scale: Scale, rng: random.Random) -> Iterator[Event]:
    """Yield that every client is asked, and the replies, of which one in twenty is set aside."""
    for client in range(scale.clients):
        asked = {"partition_id": client, "phase": "clients", "num_bytes": 90_000}
        yield {"kind": "client-asked", **asked}
    for client in range(scale.clients):
        if rng.random() < 0.05:
            word = rng.choice(["late", "failed", "malformed"])
            aside = {"partition_id": client, "reply": word, "reason": "no reply in 60 s"}
            yield {"kind": "client-rejected", **aside}
        else:
            yield {
                "kind": "client-reply",
                "partition_id": client,
                "num_examples": 250,
                "train_loss": rng.random(),
                "seconds": rng.random() * 9,
                "num_bytes": 90_000,
            }


def _distilled(owned: list[list[int]], rng: random.Random) -> Iterator[Event]:
    for client, classes in enumerate(owned):
        for iteration in (1, 10, 20):
            yield {
                "kind": "distill-progress",
                "partition_id": client,
                "iteration": iteration,
                "iterations": 20,
                "loss": 1 / iteration,
                "eta_s": 60.0,
            }
        yield {
            "kind": "distilled",
            "partition_id": client,
            "classes": classes,
            "num_images": len(classes),
            "iterations": 20,
            "first_loss": 1.0,
            "last_loss": 0.4 + rng.random() / 9,
            "student_lr": 0.02,
            "seconds": 4.0,
            "stopped": "",
            "eta_s": 60.0,
        }


def _pictures(number: int, owned: list[list[int]]) -> Iterator[Event]:
    """Yield the round's sprite, an image of each client and class, and how twelve clients' grow."""
    cells = [(client, label) for client, classes in enumerate(owned) for label in classes]
    yield {
        "kind": "sprite-written",
        "path": f"images/sprite_{number:03d}.png",
        "side": 32,
        "across": 40,
        "owners": [client for client, _ in cells],
        "labels": [label for _, label in cells],
        "weights": [30.0] * len(cells),
        "num_images": len(cells),
    }
    for client, classes in enumerate(owned[:12]):
        yield {
            "kind": "growth-written",
            "partition_id": client,
            "path": f"images/growth_{number:03d}_{client}.png",
            "side": 32,
            "labels": classes,
            "iterations": [0, 5, 10, 20],
        }


def write(folder: Path, scale: Scale, *, ended: bool = True) -> None:
    """Write one run: its log, whose time ends now, and of one that has ended its results."""
    folder.mkdir(parents=True)
    now = time.time()
    with (folder / "events.jsonl").open("w") as file:
        for step, event in enumerate(events(scale, ended=ended)):
            file.write(json.dumps({"v": 1, "time": now + step * 1e-5, **event}) + "\n")
    if ended:
        (folder / "result.json").write_text(json.dumps(_result(scale)))


def _result(scale: Scale) -> Event:
    """Return results as a run leaves them, about 18 kB for ten clients and five rounds."""
    clients = [{"partition_id": c, "seconds": 1.5, "loss": 0.5} for c in range(scale.clients)]
    score = {"accuracy": {"surrogate": 0.9}, "by-class": [[0.9] * 10] * 3}
    rounds = [{"round": n + 1, **score, "clients": clients} for n in range(scale.rounds)]
    settings = _start(scale)["config"]
    return {"config": settings, "initial": score, "rounds": rounds}


def get(url: str) -> bytes:
    """Return what the server answers."""
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=30) as reply:
        return bytes(reply.read())


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    """Return a process's resident memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def state_of(page: bytes) -> str:
    """Return what a tab says that it has."""
    parts = re.findall(rb'id="([\w-]+)" data-part data-hash="(\w+)"', page)
    return ",".join(f"{name.decode()}:{stamp.decode()}" for name, stamp in parts)


def start(folder: Path) -> tuple[subprocess.Popen[str], str]:
    """Start the command; return it and the address that it prints."""
    command = [sys.executable, "-m", "flwr_dashboard", str(folder), "--port", "0"]
    server = subprocess.Popen(
        [*command, "--token", TOKEN], stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert server.stdout is not None
    said = server.stdout.readline()
    found = re.search(r"http://[^/]+/", said)
    assert found, said
    return server, found[0]


def measure_large(folder: Path) -> None:
    """Print what one large, living run costs."""
    server, url = start(folder)
    try:
        print(f"start: {cpu_s(server.pid):.2f} CPU s, {rss_mb(server.pid):.0f} MB")
        for page in PAGES:
            before, began = cpu_s(server.pid), time.perf_counter()
            body = get(f"{url}{page}?id=large")
            spent, cpu = time.perf_counter() - began, cpu_s(server.pid) - before
            print(f"{page:10}: {spent:.3f} s, {cpu:.2f} CPU s, {len(body) / 1000:.0f} kB")
        read_on(url, server.pid)
        for page in PAGES:
            began = cpu_s(server.pid)
            print(f"{page:10}: {len(get(f'{url}{page}?id=large')) / 1000:.0f} kB, read whole, "
                  f"{cpu_s(server.pid) - began:.2f} CPU s")  # fmt: skip
        for tabs in (1, 8):
            measure_updates(url, server.pid, folder / "large" / "events.jsonl", tabs)
    finally:
        server.terminate()
        server.wait()


def read_on(url: str, pid: int) -> None:
    """Ask as a tab does until the whole log is read, and print what that took."""
    before, began = cpu_s(pid), time.perf_counter()
    while b"Reading the log" in get(f"{url}run?id=large"):
        time.sleep(0.2)
    spent = time.perf_counter() - began
    print(f"whole log : read after {spent:.1f} s more, {cpu_s(pid) - before:.2f} CPU s")


def measure_updates(url: str, pid: int, log: Path, tabs: int, updates: int = 1000) -> None:
    """Print what it costs that a run says something and every tab asks for what has changed."""
    addresses = [f"{url}{page}?id=large" for page in (*PAGES, "run", "federation")][:tabs]
    have = [state_of(get(address)) for address in addresses]
    memory, before = [rss_mb(pid)], cpu_s(pid)
    for step in range(updates // tabs):
        line = {"kind": "distill-progress", "round": 100, "partition_id": step % 200, "loss": 0.5}
        with log.open("a") as file:
            told = {**line, "iteration": step, "iterations": 5000, "eta_s": 1.0}
            file.write(json.dumps({"v": 1, "time": time.time(), **told}) + "\n")
        # Longer than a log is left alone after a look at it.
        time.sleep(0.16)
        for address, known in zip(addresses, have, strict=True):
            get(f"{address}&have={known}")
        if (step + 1) % max(updates // tabs // 4, 1) == 0:
            memory.append(rss_mb(pid))
    used = (cpu_s(pid) - before) / (updates // tabs * tabs) * 1000
    shown = ", ".join(f"{m:.0f}" for m in memory)
    print(f"an update : {used:.1f} CPU ms with {tabs} tab{'s' * (tabs > 1)}; RSS MB: {shown}")


def measure_list(folder: Path) -> None:
    """Print what a list of many runs costs, the first time and again."""
    server, url = start(folder)
    try:
        for _ in range(3):
            before, began = cpu_s(server.pid), time.perf_counter()
            body = get(f"{url}")
            spent, cpu = time.perf_counter() - began, cpu_s(server.pid) - before
            print(f"500 runs  : {spent:.3f} s, {cpu:.2f} CPU s, {len(body) / 1000:.0f} kB")
            time.sleep(1.2)
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    """Make the logs and measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--keep", type=Path, help="leave the logs in this new folder")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = chosen.keep or Path(temporary)
        write(folder / "one" / "large", Scale(chosen.clients, chosen.rounds), ended=False)
        size = (folder / "one" / "large" / "events.jsonl").stat().st_size
        print(f"{chosen.clients} clients x {chosen.rounds} rounds: {size / 1e6:.0f} MB of events")
        measure_large(folder / "one")
        for number in range(500):
            write(folder / "many" / f"run{number:03d}", Scale(10, 5))
        measure_list(folder / "many")


if __name__ == "__main__":
    main()
