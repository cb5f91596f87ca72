"""Any diffusers pipeline as a sampler: run once before round 1, its pictures kept as a bank.

A text-to-image pipeline is asked by a prompt with the class's name, a class-conditional one (DiT)
by its label. Pictures are drawn at the pipeline's own size, brought to the data set's, encoded and
kept on disk under a key of all that they depend on; each has a generator of its own, keyed by class
and number. Later only the decoder is in memory. Not the pipeline's latents but encodings of its
pictures are banked, since the former are as large as it draws (512 pixels, say), and belong to its
own autoencoder alone. Knows no federation.
"""

import gc
import hashlib
import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline, ModelMixin
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import interpolate

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.telling import now_and_then
from feddgm_flwr.priors.autoencoder import (
    LEAST_DEVIATION,
    AutoencoderPrior,
    load_autoencoder,
    prior_of,
)
from feddgm_flwr.priors.bank import FILE, LatentBank
from feddgm_flwr.priors.encoding import Encoder
from feddgm_flwr.priors.gathering import Batch, batches, gather
from feddgm_flwr.priors.settings import PriorConfig
from feddgm_flwr.priors.weights import Place, one_line

OWN_DECODER = "vae"
"""Where a pipeline keeps its autoencoder."""
HOME = Path("~/.cache/feddgm-flwr/banks")

logger = logging.getLogger(__name__)

Draw = Callable[[Batch], Float[Tensor, "n c h w"]]
"""Pictures of a batch, in [0, 1], of whatever side."""


def build_sampled_prior(
    config: PriorConfig, spec: ImageSpec, device: torch.device
) -> AutoencoderPrior:
    """Return the prior whose bank ``config``'s pipeline drew, now or in an earlier run.

    Raises
    ------
    ValueError
        The pipeline or the decoder does not load, knows no classes, or draws nothing of use.
    """
    words = words_of(config, spec)
    place = decoder_place(config)
    model = load_autoencoder(place.path, place.subfolder, place.revision)
    about = identity(config, spec, words)
    folder = bank_home(config) / key_of(about)
    bank = sampled(config, spec, words, about, folder, model, device)
    forget(device)
    return prior_of(model.cpu(), config, spec, bank, place)


def words_of(config: PriorConfig, spec: ImageSpec) -> tuple[str, ...]:
    """Return what the pipeline calls each class of the data set."""
    words = tuple(word.strip() for word in config.words.split(",")) if config.words else ()
    if words and len(words) != spec.num_classes:
        raise ValueError(
            f"prior.words must name all {spec.num_classes} classes in label order, got"
            f" {len(words)}: {config.words!r}; change it with -c"
        )
    return words or spec.classes


def decoder_place(config: PriorConfig) -> Place:
    """Return where the autoencoder lies in whose latents the bank is."""
    if config.decoder:
        return Place(config.decoder, config.subfolder)
    return Place(config.path, config.subfolder or OWN_DECODER, config.revision)


def identity(config: PriorConfig, spec: ImageSpec, words: Sequence[str]) -> dict[str, object]:
    """Return all that a bank depends on, as JSON has it."""
    return {
        "pipeline": config.path,
        "revision": config.revision,
        "decoder": str(decoder_place(config)),
        "classes": list(spec.classes),
        "words": list(words),
        "prompt": config.prompt,
        "negative_prompt": config.negative_prompt,
        "guidance": config.guidance,
        "steps": config.steps,
        "sample_size": config.sample_size,
        "seed": config.sample_seed,
        "per_class": config.per_class,
        "size": spec.size,
        "image_scale": config.image_scale,
    }


def key_of(about: Mapping[str, object]) -> str:
    """Return the name of a bank's folder."""
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:16]


def bank_home(config: PriorConfig) -> Path:
    """Return the folder of all sampled banks.

    Raises
    ------
    ValueError
        It is relative, or cannot be made.
    """
    home = Path(config.bank_folder) if config.bank_folder else HOME.expanduser()
    if not home.is_absolute():
        raise ValueError(
            f"prior.bank-folder must be an absolute path, got {config.bank_folder!r}; write the"
            " whole path"
        )
    try:
        home.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"prior.bank-folder must be a folder that can be written, got {str(home)!r}"
            f" ({error.strerror}); name another"
        ) from error
    return home


def sampled(
    config: PriorConfig, spec: ImageSpec, words: Sequence[str], about: Mapping[str, object],
    folder: Path, model: ModelMixin, device: torch.device,
) -> LatentBank:  # fmt: skip
    """Return the bank in ``folder``, drawn as far as it is not there yet."""
    if (folder / FILE).is_file():
        logger.info("the pipeline's bank is there: %s", folder)
        return LatentBank.load(folder)
    pipeline = load_pipeline(config, device)
    draw = drawer(pipeline, config, words)
    encoder = Encoder(model.to(device))
    side = spec.size * config.image_scale

    def make(batch: Batch) -> Float[Tensor, "n c h w"]:
        pictures = fitted(draw(batch), side, encoder.channels)
        return encoder(pictures)[useful(pictures, words[batch.label])]

    todo = batches([config.per_class] * spec.num_classes, config.sample_batch)
    logger.info(
        "%s draws %d pictures a class on %s, once; the bank is kept in %s",
        type(pipeline).__name__, config.per_class, device, folder,
    )  # fmt: skip
    return gather(
        folder, about, spec.classes, todo, make,
        size=spec.size, image_scale=config.image_scale,
        tell=now_and_then(partial(logger.info, "the pipeline drew %d of %d pictures, %.0f s left")),
    )  # fmt: skip


def forget(device: torch.device) -> None:
    """Give back the memory of a pipeline that nobody holds any more: gigabytes, in circles."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def load_pipeline(config: PriorConfig, device: torch.device) -> DiffusionPipeline:
    """Return the pipeline at ``config.path``, in half precision on a GPU.

    Raises
    ------
    ValueError
        It does not load: nothing is unpickled and no code of its own is run.
    """
    try:
        pipeline = DiffusionPipeline.from_pretrained(
            config.path,
            revision=config.revision or None,
            dtype=torch.float16 if device.type == "cuda" else torch.float32,
            use_safetensors=True,
        )
    except Exception as error:  # of files that are cut or of others, diffusers raises anything
        raise ValueError(
            f"prior.path must be a hub id or folder of a diffusers pipeline, got {config.path!r},"
            f" which does not load ({type(error).__name__}: {one_line(error)}); fetch it anew, or"
            " install what it needs (text-to-image: pip install '.[pipelines]' in the project's"
            " folder)"
        ) from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline.to(device)


def drawer(pipeline: DiffusionPipeline, config: PriorConfig, words: Sequence[str]) -> Draw:
    """Return what draws a batch, by prompt or by label.

    Raises
    ------
    ValueError
        The pipeline takes neither, lacks a label, or cannot be told what ``config`` says.
    """
    known = inspect.signature(type(pipeline).__call__).parameters
    told = {
        "num_inference_steps": config.steps or None,
        "guidance_scale": None if config.guidance < 0 else config.guidance,
        "negative_prompt": config.negative_prompt or None,
        "height": config.sample_size or None,
        "width": config.sample_size or None,
    }
    said = {name: value for name, value in told.items() if value is not None}
    if unknown := sorted(set(said) - set(known)):
        raise ValueError(
            f"{type(pipeline).__name__} at prior.path must take {unknown}, which the settings say,"
            " and does not; leave them out"
        )
    if "prompt" in known:
        per_label: Sequence[Any] = [config.prompt.replace("{class}", word) for word in words]
        key = "prompt"
    elif "class_labels" in known:
        per_label, key = label_ids(getattr(pipeline, "labels", {}), words), "class_labels"
    else:
        raise ValueError(
            f"prior.path must be a pipeline that takes prompts or class labels, got"
            f" {type(pipeline).__name__}, which knows no classes; choose another"
        )
    seeded = partial(derive, config.sample_seed, "pipeline-picture")

    def draw(batch: Batch) -> Float[Tensor, "n c h w"]:
        numbers = range(batch.first, batch.first + batch.count)
        asked = {name: [v] * batch.count if name == "negative_prompt" else v
                 for name, v in said.items()}  # fmt: skip
        drawn = pipeline(
            **{key: [per_label[batch.label]] * batch.count},
            generator=[seeded(batch.label, number) for number in numbers],
            output_type="np",
            **asked,
        )
        return torch.from_numpy(np.asarray(drawn.images)).float().permute(0, 3, 1, 2)

    return draw


def label_ids(labels: Mapping[str, int], words: Sequence[str]) -> list[int]:
    """Return the label of each word: a name that the pipeline knows, or the number itself.

    Raises
    ------
    ValueError
        A word is neither.
    """
    plain = {name.casefold(): number for name, number in labels.items()}
    ids = []
    for word in words:
        found = plain.get(word.casefold(), int(word) if word.isdecimal() else None)
        if found is None:
            near = get_close_matches(word.casefold(), plain, n=3)
            raise ValueError(
                f"prior.words must be labels of the pipeline, or their numbers, and {word!r} is"
                f" none{f' (near: {near})' if near else ''}; name one for each class"
            )
        ids.append(found)
    return ids


def useful(pictures: Float[Tensor, "n c s s"], word: str) -> Bool[Tensor, " n"]:
    """Return which pictures show anything; a safety filter blackens what it does not like."""
    good = pictures.flatten(1).std(1) > LEAST_DEVIATION  # of NaN too
    if not good.all():
        lost = int((~good).sum())
        logger.warning("%d pictures of %r show nothing (one colour, or NaN): left out", lost, word)
    return good


def fitted(
    pictures: Float[Tensor, "n c h w"], side: int, channels: int
) -> Float[Tensor, "n c2 s s"]:
    """Return the middle square of each picture at another side, in the channels asked for."""
    height, width = pictures.shape[2:]
    square = min(height, width)
    top, left = (height - square) // 2, (width - square) // 2
    middle = pictures[..., top : top + square, left : left + square]
    resized = interpolate(middle, size=(side, side), mode="bilinear", antialias=True).clamp(0, 1)
    return resized.mean(1, keepdim=True) if channels == 1 else resized
