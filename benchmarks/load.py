"""A real deployment under load: N SuperNodes on this machine, FedDGM beside plain Flower FedAvg.

Claims: docs/deploy.md ("Load"). One SuperLink with TLS and keys, N SuperNodes by the scripts of
deploy/, all on loopback, the nodes at a lower priority, since elsewhere they would not take the
server's processors; then a FedDGM run and a stock ``FedAvg`` of Flower (its own loop, the same
ClientApp) on the same nodes. Told: rounds completed, seconds a round, those of them that wait for
clients and those that distil, CPU seconds of a message, peak memory of ServerApp, SuperLink and
nodes, and the machine's load average. What is done is kept in ``--out`` and not done again.

    python benchmarks/load.py --nodes 4 10 50                    # a small surrogate, cold and warm
    python benchmarks/load.py --nodes 4 --surrogate-mb 50        # a large one

``--start cold`` is Flower's way, a new Python for each message; ``warm`` is FEDDGM_WARM
(docs/deploy.md), here one warm process for all nodes of this machine.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "deploy"))
from importlib.metadata import version  # noqa: E402

import credentials  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "load"
ADDRESS = "127.0.0.1"
FLEET, CONTROL, SERVERAPPIO, FIRST = 19092, 19093, 19091, 19200
RUN_WAIT_S = 4 * 3600.0
ROUND_S = 900.0
"""After so long a round goes on without the replies that are missing, in both apps."""
WATCHED = 20.0
"""Pause between two looks at the processes, in times of what a look takes."""
POLITE = ("nice", "-n", "10")
"""At equal priority 50 nodes keep a server from its heartbeats, and Flower calls the run failed."""
SETTINGS = """
num-server-rounds = {rounds}
seed = 0
[data]
name = "digits"
partition = "iid"
[client]
epochs = 1
[surrogate]
depth = {depth}
width = {width}
[prior]
kind = "pixel"
[distill]
images-per-class = 1
iterations = {iterations}
warm-iterations = {iterations}
student-steps = {iterations}
[union]
epochs = 2
[start]
control = false
[watch]
images = 0
growing = 0
[rounds]
min-clients = {nodes}
node-wait-s = 3600.0
timeout-s = {round_s}
"""
STOCK = '''"""Flower's own FedAvg, stock, with the same ClientApp."""

import json
import time
from pathlib import Path

from flwr.app import Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.models import build_surrogate
from feddgm_flwr.core.params import params_of
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.federation.messages import to_record

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run it, and note when each round ended."""
    config = RunConfig.from_run_config(context.run_config)
    model = build_surrogate(config.surrogate, spec_of(config.data))
    ends = []

    def note(server_round, arrays):
        ends.append(time.time())
        return MetricRecord({})

    nodes = config.rounds.min_clients
    strategy = FedAvg(fraction_train=1.0, fraction_evaluate=0.0, min_train_nodes=nodes,
                      min_available_nodes=nodes)
    strategy.start(grid, to_record(params_of(model)), num_rounds=config.num_server_rounds,
                   evaluate_fn=note, timeout=config.rounds.timeout_s)
    folder = Path(config.out_dir)
    folder.mkdir(parents=True, exist_ok=True)
    seconds = [b - a for a, b in zip(ends, ends[1:])]
    (folder / "stock.json").write_text(json.dumps(seconds))
'''


@dataclass
class Peaks:
    """The most memory that a kind of process had, in MB, one of them and all together."""

    rss_mb: dict[str, float] = field(default_factory=dict)
    together_mb: dict[str, float] = field(default_factory=dict)

    def look(self, group: set[int]) -> None:
        """Look at every process below those of ``group``."""
        sums: dict[str, float] = {}
        for pid in below(group):
            try:
                kind = kind_of(Path(f"/proc/{pid}/cmdline").read_bytes(), root=pid in group)
                rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            except (OSError, ValueError):
                continue  # it ended meanwhile
            if not kind:
                continue
            memory = {
                line.split(":")[0]: float(line.split()[1]) / 1024
                for line in rollup.splitlines()[1:]
                if line.startswith(("Rss:", "Pss:"))
            }
            self.rss_mb[kind] = max(self.rss_mb.get(kind, 0.0), memory["Rss"])
            sums[kind] = sums.get(kind, 0.0) + memory["Pss"]
        for kind, mb in sums.items():
            self.together_mb[kind] = max(self.together_mb.get(kind, 0.0), mb)


def below(roots: set[int]) -> set[int]:
    """Return ``roots`` and all their descendants."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            text = stat.read_text()
        except OSError:
            continue
        children.setdefault(int(text.rpartition(")")[2].split()[1]), []).append(
            int(stat.parent.name)
        )
    found, new = set(roots), list(roots)
    while new:
        new = [c for p in new for c in children.get(p, ()) if c not in found]
        found |= set(new)
    return found


def kind_of(command: bytes, *, root: bool) -> str:
    """Return which program a process is, or nothing; a fork of the warm process is a message's."""
    words = [Path(os.fsdecode(w)).name for w in command.split(b"\0")[:3]]
    if "-IS" in words:  # it only hands over
        return ""
    named = [w for w in words if w.startswith(("flower-", "flwr-")) or w == "warm.py"]
    if named == ["warm.py"] and not root:
        return "flwr-clientapp"
    return named[0] if named else ""


def cpu_s(roots: set[int]) -> float:
    """Return the CPU seconds of processes and of all that came of them, so far."""
    ticks = 0
    for pid in below(roots):
        try:
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue  # it ended meanwhile, and counts where it was waited for
        ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


@contextmanager
def going(command: list[str], log: Path, **said: object) -> Iterator[subprocess.Popen[bytes]]:
    """Run a command and its children until the context ends."""
    with log.open("ab") as file:
        process = subprocess.Popen(
            command,
            env=environment(log.parent) | {k: str(v) for k, v in said.items()},
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def environment(home: Path) -> dict[str, str]:
    """Return what every process is told: one thread, bytecode kept, no proxy."""
    kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    return kept | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FLWR_HOME": str(home / "operator"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "OMP_NUM_THREADS": "1",
        "NO_PROXY": ADDRESS,
    }


class Federation:
    """A SuperLink and N SuperNodes."""

    def __init__(self, folder: Path, nodes: int, *, warm: bool) -> None:
        self.folder, self.nodes, self.warm = folder, nodes, warm
        self.keys = folder / "keys"
        credentials.write_trial(self.keys, nodes=nodes)
        operator = folder / "operator"
        operator.mkdir()
        (operator / "config.toml").write_text(
            f'[superlink]\ndefault = "it"\n[superlink.it]\naddress = "{ADDRESS}:{CONTROL}"\n'
            f'root-certificates = "{self.keys / "ca.crt"}"\n'
        )
        self.server: set[int] = set()
        self.devices: set[int] = set()

    def flwr(self, *arguments: str) -> dict[str, Any]:
        """Call ``flwr``; return its answer."""
        ended = subprocess.run(
            ["flwr", *arguments, "it", "--format", "json"],
            env=environment(self.folder),
            capture_output=True,
            text=True,
            timeout=300,
        )
        try:
            return dict(json.loads(ended.stdout))
        except json.JSONDecodeError:
            return {"success": False}

    def online(self) -> int:
        """Return how many nodes are online; -1 while the server does not answer."""
        told = self.flwr("supernode", "list")
        if not told["success"]:
            return -1
        return sum(node["status"] == "online" for node in told["nodes"])

    @contextmanager
    def up(self) -> Iterator[None]:
        """Start all; nodes one after another, as fast as their keys are registered."""
        with ExitStack() as stack:

            def begin(side: set[int], script: str, log: str, **said: object) -> None:
                command = [*(POLITE if side is self.devices else ()), "bash"]
                command.append(str(ROOT / "deploy" / script))
                process = stack.enter_context(going(command, self.folder / log, **said))
                side.add(process.pid)

            begin(
                self.server,
                "server.sh",
                "server.log",
                FEDDGM_CREDENTIALS=self.keys,
                FEDDGM_STATE=self.folder / "server",
                FEDDGM_FLEET=f"{ADDRESS}:{FLEET}",
                FEDDGM_CONTROL=f"{ADDRESS}:{CONTROL}",
                FEDDGM_SERVERAPPIO=f"{ADDRESS}:{SERVERAPPIO}",
            )
            until(lambda: self.online() >= 0, "the server")
            path = os.environ["PATH"]
            if self.warm:
                home = self.folder / "warm"
                command = [*POLITE, sys.executable, str(ROOT / "deploy" / "warm.py"), str(home)]
                process = stack.enter_context(going(command, self.folder / "warm.log"))
                self.devices.add(process.pid)
                until((home / "flwr-clientapp").exists, "the warm process")
                path = f"{home}{os.pathsep}{Path(sys.executable).parent}{os.pathsep}{path}"
            for i in range(self.nodes):
                say(f"node {i + 1} of {self.nodes}")
                told = self.flwr("supernode", "register", str(self.keys / f"node-{i}.pub"))
                if not told["success"]:
                    raise RuntimeError(f"node {i} must be registered, got {told}")
                begin(
                    self.devices,
                    "device.sh",
                    f"node-{i}.log",
                    **({"PATH": path} if self.warm else {}),
                    FEDDGM_SUPERLINK=f"{ADDRESS}:{FLEET}",
                    FEDDGM_CA=self.keys / "ca.crt",
                    FEDDGM_KEY=self.keys / f"node-{i}",
                    FEDDGM_STATE=self.folder / f"node-{i}",
                    FEDDGM_CLIENTAPPIO=f"{ADDRESS}:{FIRST + i}",
                    FEDDGM_NODE_CONFIG=f"partition-id={i} num-partitions={self.nodes}",
                )
            until(lambda: self.online() == self.nodes, "all nodes")
            yield

    def run(self, name: str, app: Path, settings: Path) -> dict[str, Any]:
        """Run an app to its end, and look at all processes meanwhile."""
        peaks, over = Peaks(), threading.Event()

        def watch() -> None:
            wait = 1.0
            while not over.wait(wait):
                began = time.thread_time()
                peaks.look(self.server | self.devices)
                # Reading the memory of hundreds of processes is no small work itself.
                wait = max(1.0, WATCHED * (time.thread_time() - began))

        used = [cpu_s(side) for side in (self.server, self.devices)]
        watching = threading.Thread(target=watch)
        watching.start()
        log = self.folder / f"{name}.log"
        command = ["bash", str(app / "deploy" / "submit.sh"), str(self.folder / f"{name}-work")]
        command += [f"{ADDRESS}:{CONTROL}", str(self.keys / "ca.crt"), "-c", str(settings)]
        command += ["-c", f'out-dir="{self.folder / name}"']
        try:
            with going(command, log) as process:
                process.wait(timeout=RUN_WAIT_S)
                code = process.returncode
        finally:
            over.set()
            watching.join()
        if code:
            raise RuntimeError(
                f"{name} must complete, got exit code {code}:\n{log.read_text()[-4000:]}"
            )
        now = [cpu_s(side) for side in (self.server, self.devices)]
        return {
            "peak_rss_mb": peaks.rss_mb,
            "peak_pss_together_mb": peaks.together_mb,
            "server_cpu_s": now[0] - used[0],
            "devices_cpu_s": now[1] - used[1],
            "load": os.getloadavg(),
        }


def until(true: Callable[[], bool], what: str, wait_s: float = 1800.0) -> None:
    """Wait until it is so."""
    end = time.monotonic() + wait_s
    while not true():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} must be up within {wait_s:.0f} s, got none; see its log")
        time.sleep(1.0)


def stock_app(folder: Path) -> Path:
    """Return a copy of this app whose server is Flower's FedAvg."""
    for name in ("client_app.py", "LICENSE", "README.md", "pyproject.toml"):
        shutil.copy(ROOT / name, folder / name)
    for name in ("feddgm_flwr", "deploy", "dashboard"):
        ignore = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignore)
    (folder / "server_app.py").write_text(STOCK)
    return folder


def measured(nodes: int, shape: dict[str, int], rounds: int, *, warm: bool) -> dict[str, Any]:
    """Measure one size of federation."""
    import torch

    with tempfile.TemporaryDirectory(prefix="load-") as name:
        folder = Path(name)
        settings = folder / "run.toml"
        settings.write_text(SETTINGS.format(rounds=rounds, nodes=nodes, round_s=ROUND_S, **shape))
        (folder / "stock-app").mkdir()
        stock = stock_app(folder / "stock-app")
        federation = Federation(folder, nodes, warm=warm)
        before, began = os.getloadavg(), time.monotonic()
        try:
            with federation.up():
                up_s = time.monotonic() - began
                say(f"{nodes} nodes up after {up_s:.0f} s")
                fedavg = federation.run("fedavg", stock, settings)
                plain = json.loads((folder / "fedavg" / "stock.json").read_text())
                say(f"fedavg: {[round(s, 1) for s in plain]} s a round")
                feddgm = federation.run("feddgm", ROOT, settings)
        except BaseException:
            kept = Path(tempfile.gettempdir()) / "load-failed"
            shutil.rmtree(kept, ignore_errors=True)
            shutil.copytree(
                folder,
                kept,
                ignore_dangling_symlinks=True,
                ignore=lambda d, n: [x for x in n if x in ("stock-app", "socket")],
            )
            say(f"its logs are in {kept}")
            raise
        ours = json.loads((folder / "feddgm" / "result.json").read_text())
        events = [json.loads(x) for x in (folder / "feddgm" / "events.jsonl").open()]
    phases = phase_seconds(events)
    seconds = [r["seconds"] for r in ours["rounds"]]
    distil = [phases.get((i + 1, "distill"), 0.0) for i in range(len(seconds))]
    steady = slice(1, None) if len(seconds) > 1 else slice(None)  # the first sends the code too
    rest = mean([s - d for s, d in zip(seconds, distil, strict=True)][steady])
    return {
        "nodes": nodes,
        "surrogate": shape,
        "surrogate_mb": ours["rounds"][0]["bytes_down"] / nodes / 1e6,
        "start": "warm" if warm else "cold",
        "rounds": len(seconds),
        "accepted": [r["replies"]["accepted"] for r in ours["rounds"]],
        "fedavg_s": plain,
        "feddgm_s": seconds,
        "feddgm_distill_s": distil,
        "feddgm_clients_s": [phases.get((i + 1, "clients"), 0.0) for i in range(len(seconds))],
        "ratio_without_distillation": rest / mean(plain[steady]),
        "up_s": up_s,
        "fedavg": fedavg | {"messages": nodes * rounds},
        "feddgm": feddgm | {"messages": nodes * (rounds + 1)},
        "load_before": before,
        "load_after": os.getloadavg(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "flwr": version("flwr"),
        "torch": torch.__version__,
    }


def phase_seconds(events: list[dict[str, Any]]) -> dict[tuple[int, str], float]:
    """Return the seconds of each round's phases."""
    return {(e["round"], e["phase"]): e["seconds"] for e in events if e["kind"] == "phase-end"}


def mean(values: list[float]) -> float:
    """Return the mean."""
    return sum(values) / len(values)


def say(text: str) -> None:
    """Say how far it is."""
    print(f"[{time.strftime('%H:%M:%S')} load {os.getloadavg()[0]:.1f}] {text}", flush=True)


def shape_of(megabytes: float) -> dict[str, int]:
    """Return a surrogate of about so many MB: all blocks but the first have w * w * 9 weights."""
    if not megabytes:
        return {"depth": 2, "width": 16, "iterations": 5}
    return {"depth": 4, "width": round((megabytes * 1e6 / 4 / 27) ** 0.5), "iterations": 1}


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[4])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--surrogate-mb", type=float, default=0.0, help="0: a small one, width 16")
    parser.add_argument("--start", choices=("cold", "warm"), nargs="+", default=["cold", "warm"])
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    chosen.out.mkdir(parents=True, exist_ok=True)
    shape = shape_of(chosen.surrogate_mb)
    for nodes in chosen.nodes:
        for start in chosen.start:
            name = f"{nodes}-nodes-width-{shape['width']}-{chosen.rounds}-rounds-{start}.json"
            file = chosen.out / name
            if file.exists():
                say(f"{file.name} is there already")
                continue
            result = measured(nodes, shape, chosen.rounds, warm=start == "warm")
            file.write_text(json.dumps(result, indent=1) + "\n")
            say(f"{file.name}: ratio {result['ratio_without_distillation']:.2f}")


if __name__ == "__main__":
    main()
