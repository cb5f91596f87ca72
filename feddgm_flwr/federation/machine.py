"""The machine an app runs on: its device, and its facts for the record."""

import os
import platform
import socket

import torch

from feddgm_flwr.core.settings import Scalar


def device_of(key: str, name: str) -> torch.device:
    """Return the device that config ``key`` asks for by ``name``.

    Raises
    ------
    ValueError
        No such device here.
    """
    cuda = torch.cuda.is_available()
    if name == "auto":
        return torch.device("cuda" if cuda else "cpu")
    if name == "cpu":
        return torch.device("cpu")
    index = name.removeprefix("cuda").removeprefix(":") or "0"
    known = name.startswith("cuda") and index.isdecimal()
    if not known or not cuda or int(index) >= torch.cuda.device_count():
        raise ValueError(
            f"{key} must be auto, cpu, or one of {torch.cuda.device_count()} CUDA devices as "
            f"cuda:N, got {name!r} with torch {torch.__version__}; change it with -c"
        )
    return torch.device("cuda", int(index))


def facts(device: torch.device) -> dict[str, Scalar]:
    """Return what a figure of this machine depends on."""
    pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0
    page_bytes = os.sysconf("SC_PAGE_SIZE") if pages else 0
    return {
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "cpus": os.cpu_count() or 0,
        "memory_mb": pages * page_bytes // 2**20,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
    }
