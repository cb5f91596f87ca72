"""The experiments that the comparison knows: data, clients, rounds, and their common settings.

Knows no method.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from feddgm_flwr.config import settings
from feddgm_flwr.core.settings import Scalar

Said = Mapping[str, Scalar]
"""Dotted keys of a run config and their values."""

OUR_PRIOR: Said = {"prior.kind": "pixel"}
"""Where no prior of ours knows the classes: the images themselves are optimised."""
CPU: Said = {"client.device": "cpu", "server.device": "cpu"}
ANY: Said = {"client.device": "auto", "server.device": "auto"}
CLIENT = "client."
WHERE_KNOWN: Said = {"client.compile": True}
"""Said where the version at hand has such a setting: it changes speed, not the method."""


def feddm_of_equal_bytes(images_per_class: int) -> Said:
    """Return FedDM's images, such that they weigh about what a reply's parameters weigh.

    A byte a pixel; at alpha 0.1 a client of ten owns four or five classes.
    """
    return {"feddm.sent-as": "uint8", "feddm.images-per-class": images_per_class}


@dataclass(frozen=True)
class Preset:
    """One experiment.

    Attributes
    ----------
    source
        Which images, as ``images`` knows them.
    train
        How many of the training images the clients own; 0 for all.
    said
        What all methods are told.
    fixes_clients
        Whether it says how clients train, so that no row's grid tries anything of theirs.
    shares_training
        Whether clients whose training is the same under several methods train once for all.
    trial
        What all methods are told beside, whatever was tuned.
    """

    name: str
    title: str
    source: str
    train: int
    clients: int = 10
    rounds: int = 10
    said: Said = field(default_factory=dict)
    fixes_clients: bool = False
    shares_training: bool = False
    trial: Said = field(default_factory=dict)

    @property
    def common(self) -> dict[str, Scalar]:
        """What every run is told, but for its data, seed and method."""
        known = {key: value for key, value in WHERE_KNOWN.items() if key in settings()}
        return {
            "num-server-rounds": self.rounds,
            "distill.engine": "serial",
            "start.control": False,
            **known,
            **self.said,
            **self.trial,
        }

    def tunable(self, tried: Said) -> dict[str, Scalar]:
        """Return what of a row's ``tried`` settings may be tried here."""
        return {k: v for k, v in tried.items() if not (self.fixes_clients and k.startswith(CLIENT))}

    def with_said(self, said: Said) -> "Preset":
        """Return the same experiment with more settings for all."""
        return replace(self, said={**self.said, **said})

    def with_trial(self, trial: Said) -> "Preset":
        """Return the same experiment on trial of other settings.

        Raises
        ------
        ValueError
            One of them is not told by ``--set``.
        """
        if images := sorted({*trial} & set(IMAGES)):
            raise ValueError(
                f"--set cannot tell {', '.join(images)}: the images are preset {self.name}'s; "
                "choose another --preset"
            )
        if elsewhere := sorted({*trial} & {*DIVISIONS, "seed"}):
            raise ValueError(
                f"--set cannot tell {', '.join(elsewhere)}; say --alpha, --classes-per-client or "
                "--seeds"
            )
        return replace(self, trial=trial)

    def with_rounds(self, rounds: int | None) -> "Preset":
        """Return the same experiment with other ``rounds``; None leaves them."""
        return self if rounds is None else replace(self, rounds=rounds)


AS_ONE_SHOT_PAPERS: Said = {
    "client.epochs": 200,
    "client.lr": 0.01,
    "client.momentum": 0.9,
    "client.batch-size": 128,
    "client.augment": "crop_flip",
}
"""Local training of DENSE and Co-Boosting, arXiv 2112.12371 and ICLR 2024."""
LONG_TEACHING: Said = {
    **{f"{method}.epochs": 100 for method in ("dense", "coboosting")},
    **{f"{method}.student-steps": 50 for method in ("dense", "coboosting")},
    **{f"{method}.batch-size": 128 for method in ("dense", "coboosting")},
    **{f"{method}.generator-width": 64 for method in ("dense", "coboosting")},
    "dense.generator-steps": 10,
    "coboosting.generator-steps": 10,
    "feddf.steps": 2000,
    "feddf.count": 10_000,
}
"""What a server with a GPU can spend on its one round, for the methods that teach there."""

GPU: Said = {**ANY, "prior.kind": "autoencoder"}

PRESETS = {
    preset.name: preset
    for preset in (
        Preset("mnist5k", "mnist5k", "mnist5k", 0, said={**CPU, **feddm_of_equal_bytes(24)}),
        Preset("fashion", "Fashion-MNIST, 10,000 images", "fashion", 10_000,
               said={**CPU, **OUR_PRIOR, **feddm_of_equal_bytes(24)}),
        Preset("cifar10-small", "CIFAR-10, 10,000 images", "cifar10", 10_000,
               said={**CPU, **OUR_PRIOR, **feddm_of_equal_bytes(8)}),
        Preset("cifar10-oneshot", "CIFAR-10, one round of 200 epochs", "cifar10", 0, rounds=1,
               said={**ANY, **OUR_PRIOR, **AS_ONE_SHOT_PAPERS, **LONG_TEACHING,
                     "surrogate.width": 128},
               fixes_clients=True, shares_training=True),
        Preset("hundred", "CIFAR-10, 100 clients, a tenth a round", "cifar10", 0, clients=100,
               said={**CPU, **OUR_PRIOR, "rounds.fraction-train": 0.1,
                     # Of ten that are asked an honest one may own more than ten medians.
                     "server.clip-examples": 0.0, "server.clip-movement": 0.0}),
        Preset("cifar10-paper", "CIFAR-10, the authors' settings", "cifar10", 0, rounds=20,
               said={"recipe": "paper", **GPU, "prior.image-scale": 2}),
        Preset("imagenette", "ImageNette at 128 pixels", "imagenette", 0,
               said={**GPU, "surrogate.depth": 5, "surrogate.width": 128}),
    )
}  # fmt: skip
"""Name -> experiment."""

IMAGES = (
    "data.name", "data.root", "data.download", "data.class-names", "data.channels",
    "data.image-size", "data.flip",
)  # fmt: skip
"""What a preset's images say of themselves."""
DIVISIONS = "data.partition", "data.alpha", "data.classes-per-client"


def division(alpha: float, classes_per_client: int | None) -> dict[str, Scalar]:
    """Return how the images are divided: by a Dirichlet draw, or some classes a client."""
    if classes_per_client is None:
        return {"data.partition": "dirichlet", "data.alpha": alpha}
    return {"data.partition": "classes", "data.classes-per-client": classes_per_client}


def division_name(said: Said) -> str:
    """Return ``division``'s choice as a folder is named."""
    if said["data.partition"] == "dirichlet":
        return f"alpha-{said['data.alpha']:g}"
    return f"classes-{said['data.classes-per-client']}"
