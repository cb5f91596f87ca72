"""What the dashboard costs on a large run: 200 clients x 100 rounds, eight tabs, 500 runs.

``python benchmarks/dashboard_scale.py [--clients 200] [--rounds 100] [--keep FOLDER]`` makes the
logs, starts the command, and prints, of the server: CPU seconds until it answers, the first page's
seconds and kB, CPU ms of an update, RSS over 1,000 updates, and the CPU seconds of a list of 500
runs. Wants Linux, for it reads the server's CPU time and RSS from ``/proc``.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

TOKEN = "measure"


def events(clients: int, rounds: int, *, began: float, ended: bool) -> Iterator[dict[str, Any]]:
    """Yield a run's events: every client asked, replied and distilled in every round."""
    rng = random.Random(0)
    yield {
        "kind": "run-start",
        "round": 0,
        "method": "feddgm",
        "rounds": rounds,
        "seed": 0,
        "resumed": False,
        "config": {f"group{i % 8}.key{i}": i for i in range(90)},
        "classes": [str(c) for c in range(10)],
        "versions": {},
        "machine": {"host": "scale"},
        "pid": 1,
    }
    yield {
        "kind": "control-scored",
        "round": 0,
        "accuracy": {"surrogate": 0.5},
        "loss": {},
        "metrics": {},
    }
    for number in range(1, rounds + 1):
        everyone = list(range(clients))
        yield {
            "kind": "round-start",
            "round": number,
            "rounds": rounds,
            "clients": everyone,
            "online": clients,
        }
        yield {"kind": "phase-start", "round": number, "phase": "clients"}
        for client in everyone:
            yield {
                "kind": "client-asked",
                "round": number,
                "partition_id": client,
                "phase": "clients",
                "num_bytes": 90_000,
            }
        for client in everyone:
            if rng.random() < 0.05:
                yield {
                    "kind": "client-rejected",
                    "round": number,
                    "partition_id": client,
                    "reply": rng.choice(["late", "failed", "malformed"]),
                    "reason": "no reply in 60 s",
                }
                continue
            yield {
                "kind": "client-reply",
                "round": number,
                "partition_id": client,
                "num_examples": 250,
                "train_loss": rng.random(),
                "seconds": rng.random() * 9,
                "num_bytes": 90_000,
            }
        yield {"kind": "phase-end", "round": number, "phase": "clients", "seconds": 9.0}
        yield {"kind": "phase-start", "round": number, "phase": "distill"}
        for client in everyone:
            for iteration in (1, 10, 20):
                yield {
                    "kind": "distill-progress",
                    "round": number,
                    "partition_id": client,
                    "iteration": iteration,
                    "iterations": 20,
                    "loss": 1 / iteration,
                    "eta_s": 60.0,
                }
            yield {
                "kind": "distilled",
                "round": number,
                "partition_id": client,
                "classes": sorted(rng.sample(range(10), 4)),
                "num_images": 40,
                "iterations": 20,
                "first_loss": 1.0,
                "last_loss": 0.4 + rng.random() / 9,
                "student_lr": 0.02,
                "seconds": 4.0,
                "stopped": "",
                "eta_s": 60.0,
            }
        yield {"kind": "phase-end", "round": number, "phase": "distill", "seconds": 20.0}
        gain = 0.9 - 0.4 * 0.95**number
        yield {
            "kind": "round-end",
            "round": number,
            "accuracy": {"surrogate": gain},
            "loss": {"surrogate": 0.5},
            "seconds": 34.0,
            "bytes_up": clients * 90_000,
            "bytes_down": clients * 90_000,
            "replies": {"accepted": clients},
            "kept": "",
            "eta_s": (rounds - number) * 34.0,
            "federated": None,
        }
    if ended:
        yield {"kind": "run-end", "round": rounds, "status": "completed", "reason": ""}


def write(folder: Path, clients: int, rounds: int, *, ended: bool = True) -> None:
    """Write one run's log; its time ends now."""
    folder.mkdir(parents=True)
    now = time.time()
    with (folder / "events.jsonl").open("w") as file:
        for step, event in enumerate(events(clients, rounds, began=now, ended=ended)):
            file.write(json.dumps({"v": 1, "time": now + step * 1e-5, **event}) + "\n")


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
        for page in ("run", "federation", "time", "log", "config", "images"):
            before, began = cpu_s(server.pid), time.perf_counter()
            body = get(f"{url}{page}?id=large")
            spent, cpu = time.perf_counter() - began, cpu_s(server.pid) - before
            print(f"{page:10}: {spent:.3f} s, {cpu:.2f} CPU s, {len(body) / 1000:.0f} kB")
        address = f"{url}federation?id=large"
        for _ in range(20):
            state = state_of(get(address))
        log, step = folder / "large" / "events.jsonl", 0
        memory = [rss_mb(server.pid)]
        updates, before = 1000, cpu_s(server.pid)
        for update in range(updates):
            with log.open("a") as file:
                step += 1
                line = {
                    "kind": "distill-progress",
                    "round": 100,
                    "partition_id": step % 200,
                    "iteration": step,
                    "iterations": 5000,
                    "loss": 0.5,
                    "eta_s": 1.0,
                }
                file.write(json.dumps({"v": 1, "time": time.time(), **line}) + "\n")
            time.sleep(0.02)
            get(f"{address}&have={state}")
            if update % 250 == 249:
                memory.append(rss_mb(server.pid))
        used = (cpu_s(server.pid) - before) / updates * 1000
        print(f"an update: {used:.1f} CPU ms; RSS MB: {', '.join(f'{m:.0f}' for m in memory)}")
    finally:
        server.terminate()
        server.wait()


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
        write(folder / "one" / "large", chosen.clients, chosen.rounds, ended=False)
        size = (folder / "one" / "large" / "events.jsonl").stat().st_size
        print(f"{chosen.clients} clients x {chosen.rounds} rounds: {size / 1e6:.0f} MB of events")
        measure_large(folder / "one")
        for number in range(500):
            write(folder / "many" / f"run{number:03d}", 10, 5)
        measure_list(folder / "many")


if __name__ == "__main__":
    main()
