"""Config and weights in diffusers' layout, in a folder or on the hub: found, read, never guessed.

What cannot be read as it is said is refused in one sentence that names the file and the remedy:
pointers of a large-file store, cut files, pickles, whole pipelines, folders of another library.
One file of weights, its shards, or a variant (half precision) where that is all there is; nothing
is unpickled. Knows files, JSON and tensors; which tensors a model wants, and what they mean, is
``autoencoder``'s.
"""

import json
import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CONFIG = "config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
STEM = "diffusion_pytorch_model"
VARIANTS = ("fp16", "bf16", "fp32", "non_ema")
"""Asked for on the hub, where a folder would be looked through."""
POINTER = b"version https://git-lfs"
"""How a file begins that stands for one in Git LFS."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Place:
    """A folder, or a repository of the hub, as ``prior.path`` and ``prior.subfolder`` name it.

    ``revision`` is a branch, tag or commit of the hub; "" is its newest.
    """

    path: str
    subfolder: str = ""
    revision: str = ""

    def __str__(self) -> str:
        """Return how an error names it."""
        inside = f" (subfolder {self.subfolder!r})" if self.subfolder else ""
        return f"prior.path {self.path!r}{inside}"

    @property
    def folder(self) -> Path | None:
        """The folder, if it is one and not a hub id."""
        return Path(self.path, self.subfolder) if Path(self.path).is_dir() else None

    def file(self, name: str) -> Path | None:
        """Return the named file, or None if the place has none such.

        Raises
        ------
        ValueError
            The place itself cannot be reached, or the file is a pointer.
        """
        if self.folder is None:
            found = self._on_hub(name)
        else:
            found = self.folder / name if (self.folder / name).is_file() else None
        if found is not None:
            with found.open("rb") as opened:
                if opened.read(len(POINTER)) == POINTER:
                    raise ValueError(
                        f"{self} must hold {name} itself, and has a Git LFS pointer to it; run"
                        " `git lfs pull` there, or fetch the file anew"
                    )
        return found

    def _on_hub(self, name: str) -> Path | None:
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        if not re.fullmatch(r"(?a:\w[\w.-]*(/\w[\w.-]*)?)", self.path):
            raise self._unreachable("there is no such folder")
        try:
            found: str = hf_hub_download(
                self.path,
                name,
                subfolder=self.subfolder or None,
                revision=self.revision or None,
            )
            return Path(found)
        except EntryNotFoundError as error:
            # Without a network, a file that was never fetched; with one, a file that is not there.
            if isinstance(error, OSError) and name == CONFIG and _offline(error):
                raise self._unreachable("it was never fetched, and the hub is silent") from error
            return None
        except (OSError, ValueError, RuntimeError) as error:
            raise self._unreachable(one_line(error)) from error

    def _unreachable(self, reason: str) -> ValueError:
        return ValueError(
            f"{self} must be a hub id or a folder with {CONFIG} and {WEIGHTS}, and could not be"
            f" read: {reason}; give the absolute path of a folder, or fetch the model once with a"
            " network"
        )

    def named(self, pattern: str) -> list[str]:
        """Return the folder's file names that match, sorted; on the hub, the likely ones."""
        if self.folder is not None:
            names = sorted(p.name for p in self.folder.glob("*") if p.is_file())
            return [n for n in names if re.fullmatch(pattern, n)]
        likely = [f"{STEM}.{v}.safetensors" for v in VARIANTS]
        likely += [f"{WEIGHTS}.index.{v}.json" for v in VARIANTS]
        likely += [f"{STEM}.bin", f"{STEM}.bin.index.json"]
        return [n for n in likely if re.fullmatch(pattern, n) and self.file(n) is not None]


def _offline(error: OSError) -> bool:
    from huggingface_hub.errors import LocalEntryNotFoundError

    return isinstance(error, LocalEntryNotFoundError)


def one_line(error: Exception) -> str:
    """Return what an error says first."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def read_config(place: Place, families: Mapping[str, Any]) -> dict[str, Any]:
    """Return what config.json states, of a model that ``families`` knows.

    Raises
    ------
    ValueError
        There is none, it is no JSON object, or it is of another class or library.
    """
    if Path(place.path).is_file():
        raise ValueError(f"{place} must be a folder, got a file; give the folder that it lies in")
    found = place.file(CONFIG)
    if found is None:
        raise ValueError(_without_config(place, families))
    config = _json(place, found)
    name = config.get("_class_name")
    if not isinstance(name, str) or name not in families:
        known = f"one of {sorted(families)}"
        other = config.get("architectures") or config.get("model_type")
        if name is None and other:
            raise ValueError(
                f"{place} must hold {known}, its {CONFIG} is another library's ({other});"
                " choose an autoencoder in diffusers' layout"
            )
        raise ValueError(
            f"{place} must hold {known}, its {CONFIG} says {name!r};"
            " choose another autoencoder, or its folder by prior.subfolder"
        )
    return config


def _without_config(place: Place, families: Mapping[str, Any]) -> str:
    pipeline = place.file("model_index.json")
    if pipeline is not None:
        parts = [
            name
            for name, about in _json(place, pipeline).items()
            if isinstance(about, list) and len(about) == 2 and about[1] in families
        ]
        choice = " or ".join(f'prior.subfolder="{name}"' for name in parts or ["vae"])
        return f"{place} is a whole pipeline; name the autoencoder in it with {choice}"
    has = f", and has {', '.join(place.named('.*')[:6]) or 'no files'}" if place.folder else ""
    return (
        f"{place} must hold {CONFIG} and {WEIGHTS} of a diffusers autoencoder{has};"
        " give the folder or the prior.subfolder that has both"
    )


def _json(place: Place, path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise ValueError(
            f"{place} must hold a {path.name} in JSON, and it cannot be read as such"
            f" ({one_line(error)}); fetch it anew"
        ) from error
    if not isinstance(read, dict):
        raise ValueError(f"{place} must hold a {path.name} with an object; fetch it anew")
    return read


def read_weights(place: Place) -> dict[str, Tensor]:
    """Return the tensors in float32, from one file, shards, or the only variant.

    Raises
    ------
    ValueError
        There are none, several variants, or some that are damaged, not finite or no numbers.
    """
    index = f"{WEIGHTS}.index.json"
    if (whole := place.file(WEIGHTS)) is not None:
        weights = _tensors(place, whole)
    elif (listed := place.file(index)) is not None:
        weights = _shards(place, listed)
    else:
        weights = _variant(place)
    return {name: _number(place, name, tensor) for name, tensor in weights.items()}


def _variant(place: Place) -> dict[str, Tensor]:
    escaped = re.escape(WEIGHTS)
    names = [
        *place.named(rf"{STEM}\.(?!.*-\d+-of-\d+)[\w-]+\.safetensors"),
        *place.named(rf"{escaped}\.index\.[\w-]+\.json"),
    ]
    if len(names) == 1:
        logger.info("%s has no %s; reading %s", place, WEIGHTS, names[0])
        found = place.file(names[0])
        assert found is not None
        return _shards(place, found) if names[0].endswith(".json") else _tensors(place, found)
    if names:
        raise ValueError(
            f"{place} must hold {WEIGHTS} or one variant of it, and has {' and '.join(names)};"
            f" copy the one that you mean to {WEIGHTS}"
        )
    if pickled := place.named(rf"{STEM}.*\.bin(\.index\.json)?"):
        raise ValueError(
            f"{place} must hold {WEIGHTS}, and has {pickled[0]}, which is a pickle and can run"
            " code when it is read; if you trust it, convert it once with diffusers:"
            " from_pretrained(FOLDER).save_pretrained(FOLDER)"
        )
    has = f", and has {', '.join(place.named('.*')[:6])}" if place.folder else ""
    raise ValueError(f"{place} must hold {WEIGHTS}{has}; fetch the weights too")


def _shards(place: Place, index: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that an index names, each from where it says."""
    listed = _json(place, index).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(f, str) for f in listed.values()):
        raise ValueError(f"{place} must hold an {index.name} with a weight_map; fetch it anew")
    weights: dict[str, Tensor] = {}
    for name in sorted(set(listed.values())):
        # An index is a stranger's: it may name files beside it, and no others.
        found = place.file(name) if re.fullmatch(r"[\w.-]+\.safetensors", name) else None
        if found is None:
            raise ValueError(
                f"{place} must hold {name!r}, which its {index.name} names; fetch all shards"
            )
        weights |= _tensors(place, found)
    if lost := sorted(set(listed) - set(weights)):
        raise ValueError(
            f"{place} has {len(lost)} tensors in {index.name} that no shard holds, such as"
            f" {lost[0]}; fetch all shards anew"
        )
    return weights


def _tensors(place: Place, path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        read: dict[str, Tensor] = load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise ValueError(
            f"{place} must hold a whole {path.name}, and it is damaged or cut short"
            f" ({one_line(error)}); fetch it anew"
        ) from error
    return read


def _number(place: Place, name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        raise ValueError(
            f"{place} must hold weights in floating point, and {name} is {tensor.dtype};"
            " choose weights that are not quantised"
        )
    single = tensor.float()
    if not torch.isfinite(single).all():
        raise ValueError(
            f"{place} must hold finite weights, and {name} has NaN or infinity; fetch the"
            " weights anew, or choose others"
        )
    return single
