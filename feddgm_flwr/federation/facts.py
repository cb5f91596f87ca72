"""The server's machine for the record: what a figure depends on, and what its GPU holds."""

import torch

from feddgm_flwr.core.settings import Scalar
from feddgm_flwr.federation.machine import name_of
from flwr_dashboard.writer import machine


def facts(device: torch.device) -> dict[str, Scalar]:
    """Return what a figure of this machine depends on."""
    return {**machine(), "device": name_of(device)}


def gpu_load(device: torch.device) -> dict[str, float]:
    """Return the memory in use on a GPU, by whomever; nothing of a CPU."""
    if device.type != "cuda":
        return {}
    free, total = torch.cuda.mem_get_info(device)
    return {"gpu_mb": round((total - free) / 2**20, 1)}
