"""What the golden files hold: seeds and first draws, and two rounds of the toy federation."""

import torch
import toy
from torch import Tensor

from feddgm_flwr.core.algorithm import apply_round
from feddgm_flwr.core.seeding import derive, derive_seed
from feddgm_flwr.core.state import RoundReport, ServerState
from feddgm_flwr.events import Trained

ADDRESSES = (
    (0, "surrogate"),
    (1, "surrogate"),
    (0, "Surrogate"),
    (0, "global-model", 0),
    (0, "global-model", 1),
    (0, "latents", 1, 0),
    (0, "latents", 1, 1),
    (0, "latents", 2, 0),
    (0, "latents", 10, 0),
    (0, "student-augment", 3, 14, 15),
    (2**31, "client", 5, 2**32 - 1),
    (7, ""),
)
"""Seed, purpose and address."""


def seeding() -> list[dict]:
    """Return the seed of each address and the first numbers drawn from it."""
    return [
        {
            "of": list(address),
            "seed": derive_seed(*address),
            # Whole numbers are drawn without any arithmetic that a CPU could round.
            "integers": torch.randint(2**31, (3,), generator=derive(*address)).tolist(),
            "order": torch.randperm(6, generator=derive(*address)).tolist(),
        }
        for address in ADDRESSES
    ]


def toy_rounds() -> list[dict]:
    """Return the numbers of a first round and of a warm one after it."""
    server = toy.server()
    state, updates = toy.federation(server)
    rounds = []
    for _ in range(2):
        events: list = []
        state, report = apply_round(state, updates, server.shop, emit=events.append)
        (union,) = (e.images for e in events if isinstance(e, Trained))
        rounds.append(numbers(state, report, union))
        updates = toy.replies(server, state)
    return rounds


def numbers(state: ServerState, report: RoundReport, union: int) -> dict:
    """Return a round in few numbers."""
    return {
        "union": union,
        "classes": [list(d.classes) for d in report.distilled],
        "first_loss": [d.first_loss for d in report.distilled],
        "last_loss": [d.last_loss for d in report.distilled],
        "student_lr": [d.student_lr for d in report.distilled],
        "images": size(report.fresh.images),
        "surrogate": {name: size(p) for name, p in state.surrogate.items()},
    }


def size(tensor: Tensor) -> dict[str, float]:
    """Return sum and norm, added up in double precision."""
    exact = tensor.double()
    return {"sum": float(exact.sum()), "norm": float(exact.norm())}
