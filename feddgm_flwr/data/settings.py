"""The settings of the data: which images there are and who owns them."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feddgm_flwr.core.settings import Settings, setting
from feddgm_flwr.data.names import plain, wrong_names

OWN = ("folder", "npz")
"""Names of the user's own data."""
# Those of torchvision lie under ``data.root``; all others come with the installation.
TORCHVISION = ("mnist", "fashion-mnist", "cifar10", "cifar100", "svhn")


@dataclass(frozen=True, kw_only=True)
class DataConfig(Settings):
    """Which images there are and who owns them."""

    section: ClassVar[str] = "data"

    name: Literal[
        "mnist5k",
        "digits",
        "mnist",
        "fashion-mnist",
        "cifar10",
        "cifar100",
        "svhn",
        "folder",
        "npz",
    ] = setting(
        "mnist5k",
        "Data set: `mnist5k` and `digits` come with the installation, the torchvision ones from "
        "`root`, `folder` is `root/{train,test}/<class>/*`, `npz` holds uint8 images "
        "(docs/data.md).",
    )
    root: str = setting(
        "",
        "Absolute folder (or `.npz` file) of the data; a device's own `data-dir` node-config wins.",
        may_differ=True,
        only={"name": (*TORCHVISION, *OWN)},
    )
    download: bool = setting(
        False,
        "Let torchvision download what `root` lacks.",
        may_differ=True,
        only={"name": TORCHVISION},
    )
    partition: Literal["iid", "dirichlet", "classes"] = setting(
        "dirichlet", "How simulated clients divide the training images."
    )
    alpha: float = setting(
        0.1,
        "Dirichlet concentration; the smaller, the more skewed.",
        gt=0,
        only={"partition": ("dirichlet",)},
    )
    min_examples: int = setting(
        10,
        "A Dirichlet draw is repeated until every client owns at least this many images.",
        ge=1,
        only={"partition": ("dirichlet",)},
    )
    classes_per_client: int = setting(
        2, "Classes that each client owns.", ge=1, only={"partition": ("classes",)}
    )
    class_names: str = setting(
        "", "Comma-separated class names, in label order.", only={"name": OWN}
    )
    channels: int = setting(3, "1 (grey) or 3 (colour).", ge=1, le=3, only={"name": OWN})
    image_size: int = setting(
        32, "Side in pixels, to which images are resized.", ge=8, le=1024, only={"name": OWN}
    )
    flip: bool = setting(
        False,
        "Whether a mirrored image keeps its class; only then does an augmentation flip.",
        only={"name": OWN},
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.channels == 2:
            raise ValueError("data.channels must be 1 or 3, got 2; change it with -c")
        if self.name in OWN and not self.class_list:
            raise ValueError(
                "data.class-names must be the comma-separated class names of data.name = "
                f"{self.name!r}, got {self.class_names!r}; change it with -c"
            )
        if said := wrong_names(self.class_list):
            raise ValueError(f"data.class-names must {said}; change it with -c")

    @property
    def class_list(self) -> tuple[str, ...]:
        """The names in `class_names`, in label order, composed and without stray blanks."""
        # Blanks first: a line break around a comma is none of a name.
        return tuple(plain(n) for n in self.class_names.split(",") if n.strip())
