"""The settings of the prior."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feddgm_flwr.core.settings import Settings, Words, setting

SAMPLED = {"kind": ("pipeline",)}
"""What only the sampling by a pipeline reads."""


def fills_in(prompt: str) -> bool:
    """Whether ``{class}`` stands in ``prompt``, so that prompts differ by class."""
    return "{class}" in prompt


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Settings):
    """The frozen, pretrained prior in whose latent space the server distils."""

    section: ClassVar[str] = "prior"

    kind: Literal["auto", "glyphs", "autoencoder", "pipeline", "pixel"] = setting(
        "auto",
        "`glyphs`: our class-conditional prior (fonts); `autoencoder`: any diffusers autoencoder, "
        "class-conditional where a bank lies beside it; `pipeline`: the same with a bank that a "
        "diffusers pipeline samples before round 1; `pixel`: no prior, the images themselves "
        "are optimised; `auto`: what lies at `path`, else glyphs where they know the classes, else "
        "pixel.",
    )
    path: str = setting(
        "",
        "For `autoencoder` and `pipeline`: hub id or absolute folder in diffusers' layout. For "
        '`glyphs`: another prior made by `feddgm-pretrain`; "" is the one that ships.',
        may_differ=True,
        only={"kind": ("autoencoder", "auto", "glyphs", "pipeline")},
    )
    subfolder: str = setting(
        "",
        "Folder within `path`, such as `vae`; under `pipeline`, within `decoder`.",
        may_differ=True,
        only={"kind": ("autoencoder", "auto", "glyphs", "pipeline")},
    )
    revision: str = setting(
        "",
        "Branch, tag or commit of the hub id.",
        only={"kind": ("autoencoder", "auto", "pipeline")},
    )
    feature_block: int = setting(
        0,
        "0 optimises the latent itself; n > 0 the decoder's feature after its n-th block (F_n).",
        ge=0,
        only={"kind": ("autoencoder", "glyphs", "pipeline")},
    )
    image_scale: int = setting(
        1,
        "Decode at this multiple of the image size, then average down (2 suits 32-pixel images "
        "under a photographic autoencoder); a bank knows its own.",
        ge=1,
        le=8,
        only={"kind": ("autoencoder", "pipeline")},
    )
    decoder: str = setting(
        "",
        'Autoencoder in whose latents the pipeline\'s pictures are banked; "" is its own `vae`.',
        only=SAMPLED,
    )
    words: str = setting(
        "",
        "What the pipeline calls the classes: comma-separated, in label order; for a "
        'class-conditional one its labels or their numbers. "" is the data set\'s names.',
        only=SAMPLED,
    )
    prompt: str = setting(
        "a photo of a {class}",
        "What a text-to-image pipeline is asked for.",
        words=Words(fit=fills_in, expected="words around {class}"),
        only=SAMPLED,
    )
    negative_prompt: str = setting("", "What it is asked to avoid.", only=SAMPLED)
    guidance: float = setting(
        -1.0, "Guidance scale; -1 is the pipeline's own default.", ge=-1, only=SAMPLED
    )
    steps: int = setting(0, "Denoising steps; 0 is the pipeline's own default.", ge=0, only=SAMPLED)
    sample_size: int = setting(
        0,
        "Side at which it draws, before pictures shrink to the data's; 0 is its own.",
        ge=0,
        only=SAMPLED,
    )
    sample_batch: int = setting(
        4, "Pictures that it draws at a time.", ge=1, may_differ=True, only=SAMPLED
    )
    sample_seed: int = setting(
        0, "Of its draws; not `seed`, so that runs of other seeds share a bank.", ge=0,
        only=SAMPLED,
    )  # fmt: skip
    per_class: int = setting(100, "Pictures a class in the bank.", ge=1, only=SAMPLED)
    bank_folder: str = setting(
        "",
        'Absolute folder that keeps sampled banks for later runs; "" is '
        "`~/.cache/feddgm-flwr/banks`.",
        may_differ=True,
        only=SAMPLED,
    )
    pixel_start: Literal["white", "smooth", "grey"] = setting(
        "white",
        "What the images of `pixel` start from: white noise, noise of low frequencies, or grey.",
        only={"kind": ("pixel",)},
    )
    chunk: int = setting(
        16, "Images decoded at a time; more suit a GPU, and take more memory.", ge=1
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind in ("autoencoder", "pipeline") and not self.path:
            raise ValueError(
                f"prior.path must be a hub id or folder when prior.kind = {self.kind!r}, got ''; "
                "change it with -c"
            )
