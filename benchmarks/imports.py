"""What the apps add to the imports of Flower and torch.

Claim: docs, "Speed": a client imports next to nothing beyond Flower and torch. Prints the seconds
that a fresh interpreter takes for each, the least of several, and the heavy packages that it holds
afterwards.

    python benchmarks/imports.py [REPEATS]
"""

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEAVY = ("diffusers", "matplotlib", "mlxtend", "PIL", "ray", "scipy", "sklearn", "torchvision")
IMPORTED = (
    "torch",
    "flwr.app, flwr.clientapp, torch",
    "client_app",
    "flwr.app, flwr.serverapp, torch",
    "server_app",
    "torch, feddgm_flwr.priors.autoencoder",
)


def seconds(code: str) -> float:
    """Return how long a fresh interpreter takes."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=os.environ, check=True)
    return time.perf_counter() - began


def held(modules: str) -> str:
    """Return the peak of resident memory and the heavy packages that are imported along."""
    code = (
        f"import resource, sys, {modules}\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024, end=' | ')\n"
        f"print(', '.join(m for m in {HEAVY!r} if m in sys.modules) or 'none')"
    )
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return said.stdout.strip()


def main() -> None:
    """Print one row an import."""
    repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    bare = min(seconds("pass") for _ in range(repeats))
    print("| import | s | MiB | heavy packages |\n|---|---|---|---|")
    for modules in IMPORTED:
        least = min(seconds(f"import {modules}") for _ in range(repeats))
        print(f"| `{modules}` | {least - bare:.2f} | {held(modules)} |")


if __name__ == "__main__":
    main()
