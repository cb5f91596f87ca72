"""The settings of the prior."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feddgm_flwr.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class PriorConfig(Settings):
    """The frozen, pretrained prior in whose latent space the server distils."""

    section: ClassVar[str] = "prior"

    kind: Literal["auto", "glyphs", "autoencoder", "pixel"] = setting(
        "auto",
        "`glyphs`: our class-conditional prior (fonts); `autoencoder`: any diffusers autoencoder, "
        "class-conditional where a bank lies beside it; `pixel`: no prior, the images themselves "
        "are optimised; `auto`: what lies at `path`, else glyphs where they know the classes, else "
        "pixel.",
    )
    path: str = setting(
        "",
        "For `autoencoder`: hub id or absolute folder in diffusers' layout. For `glyphs`: another "
        'prior made by `feddgm-pretrain`; "" is the one that ships.',
        may_differ=True,
        only={"kind": ("autoencoder", "auto", "glyphs")},
    )
    subfolder: str = setting(
        "",
        "Folder within `path`, such as `vae`.",
        may_differ=True,
        only={"kind": ("autoencoder", "auto", "glyphs")},
    )
    feature_block: int = setting(
        0,
        "0 optimises the latent itself; n > 0 the decoder's feature after its n-th block (F_n).",
        ge=0,
        only={"kind": ("autoencoder", "glyphs")},
    )
    image_scale: int = setting(
        1,
        "Decode at this multiple of the image size, then average down (2 suits 32-pixel images "
        "under a photographic autoencoder); a bank knows its own.",
        ge=1,
        le=8,
        only={"kind": ("autoencoder",)},
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
        if self.kind == "autoencoder" and not self.path:
            raise ValueError(
                "prior.path must be a hub id or folder when prior.kind = 'autoencoder', got ''; "
                "change it with -c"
            )
