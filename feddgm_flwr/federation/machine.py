"""The device that an app computes on: by its config, and by its name."""

import torch


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


def name_of(device: torch.device) -> str:
    """Return a GPU's name as its maker gives it, or "cpu"."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
