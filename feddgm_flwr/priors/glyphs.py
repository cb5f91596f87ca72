"""The default prior: a small autoencoder of characters that knows their classes.

Pretrained by ``feddgm-pretrain`` on glyphs of fonts, never on anybody's data; its
weights are the package ``feddgm_priors``. It has one native size, from which images are
resized to the data set's. A class of the data set is known where its name is that of a
character; "3 - three" counts as "3".
"""

from pathlib import Path

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.params import fingerprint
from feddgm_flwr.priors.autoencoder import Decoder, check_decoding, load_autoencoder
from feddgm_flwr.priors.bank import FILE, LatentBank, match_classes
from feddgm_flwr.priors.settings import PriorConfig
from feddgm_flwr.priors.weights import Place


class GlyphPrior:
    """A frozen decoder with a bank of latents by class."""

    def __init__(self, decoder: Decoder, bank: LatentBank, spec: ImageSpec) -> None:
        if decoder.out_channels != spec.channels:
            raise ValueError(
                f"prior.kind 'glyphs' makes images of {decoder.out_channels}"
                f" channel(s), the data set has {spec.channels}; use prior.kind"
                " pixel or autoencoder, or a prior of your own (feddgm-pretrain --images)"
            )
        self._decoder, self._bank, self._size = decoder, bank, spec.size
        self._classes = match_classes(spec.classes, bank.classes)

    @property
    def conditional(self) -> bool:
        """Whether the bank knows every class of the data set."""
        return self._classes is not None

    @property
    def fingerprint(self) -> str:
        """Of the decoder's weights and the bank."""
        return fingerprint(self._decoder.state_dict() | self._bank.tensors)

    def sample(
        self, labels: Int[Tensor, " n"], *, rng: torch.Generator
    ) -> Float[Tensor, "n c h w"]:
        """Return latents of the labels' characters, or of any if one is unknown."""
        known = self._classes
        wanted = None if known is None else [known[label] for label in labels.tolist()]
        latents = self._bank.sample(wanted, len(labels), rng=rng)
        values: Tensor = self._decoder.enter(latents.to(self._decoder.std.device)).cpu()
        return values

    def decode(self, latents: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h2 w2"]:
        """Return images of the data set's size."""
        images: Tensor = self._decoder(latents)
        if images.shape[-1] == self._size:
            return images
        shrinks = self._size < images.shape[-1]
        return functional.interpolate(
            images, size=(self._size, self._size), mode="bilinear", antialias=shrinks
        )

    def to(self, device: torch.device) -> "GlyphPrior":
        """Move the decoder."""
        self._decoder.to(device)
        return self


def build_glyph_prior(config: PriorConfig, spec: ImageSpec) -> GlyphPrior:
    """Return the prior at ``config.path``, or the one that ships.

    Raises
    ------
    ValueError
        It is missing, or cannot make images of ``spec``.
    """
    folder = Path(config.path, config.subfolder) if config.path else shipped("glyphs")
    if not (folder / FILE).is_file():
        raise ValueError(
            f"prior.path {config.path!r} must be a folder made by feddgm-pretrain,"
            f" and {folder / FILE} is missing; pip install the project where the"
            " ServerApp runs, or run feddgm-pretrain"
        )
    bank = LatentBank.load(folder)
    decoder = Decoder(load_autoencoder(str(folder)), config.feature_block)
    if bank.codes.shape[1] != decoder.channels:
        raise ValueError(
            f"prior.path {str(folder)!r} must hold a decoder and a bank of one prior, and the"
            f" decoder takes latents of {decoder.channels} channels, {FILE} has"
            f" {bank.codes.shape[1]}; fetch both anew, or run feddgm-pretrain"
        )
    check_decoding(decoder, bank.latents[[0, -1]], Place(str(folder)))
    return GlyphPrior(decoder, bank, spec)


def shipped(name: str) -> Path:
    """Return the folder of a prior that comes with the project.

    Raises
    ------
    ValueError
        The package of priors is not installed.
    """
    try:
        import feddgm_priors
    except ModuleNotFoundError as error:
        raise ValueError(
            f"prior.kind {name!r} needs the package feddgm_priors, which is not"
            " installed here; pip install the project where the ServerApp runs"
        ) from error
    return feddgm_priors.path(name)
