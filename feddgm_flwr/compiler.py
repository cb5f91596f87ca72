"""Whether there is the C++ compiler that ``torch.compile`` calls on a CPU."""

import os
import shutil

import torch


def need_compiler(key: str, device: torch.device) -> None:
    """Raise where the setting ``key`` asks to compile on ``device`` and nothing here can.

    Raises
    ------
    ValueError
        There is no compiler, and a CPU needs one.
    """
    compiler = os.environ.get("CXX", "g++")
    if device.type == "cpu" and not shutil.which(compiler):
        raise ValueError(
            f"{key} = true needs a C++ compiler, and {compiler} is not found; install "
            f"one, name it by the environment's CXX, or set {key} = false"
        )
