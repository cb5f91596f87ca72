"""Every setting of a run, typed and checked where it enters.

Flower hands both apps one flat mapping of dotted kebab-case keys (``distill.latent-lr``).
``RunConfig.from_run_config`` turns it into a tree of frozen dataclasses, once, or raises one
sentence with the key, the value, what was expected and what to do. Below the apps only
sub-configs travel.

A value of ``"auto"`` means "as the recipe says": ``RECIPES`` holds what each named recipe sets,
the dataclass defaults hold the rest. This module knows no tensor, no data set and no Flower.
"""

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args, get_origin, get_type_hints

Scalar = bool | int | float | str
AUTO = "auto"


def _check(ok: bool, key: str, value: object, expected: str) -> None:
    if not ok:
        raise ValueError(f"{key} must be {expected}, got {value!r}; change it with -c")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images there are and who owns them."""

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
    ] = "mnist5k"
    """Data set: `mnist5k` and `digits` come with the installation, the torchvision ones from
    `root`, `folder` is `root/{train,test}/<class>/*`, `npz` holds uint8 images (docs/data.md)."""
    root: str = ""
    """Absolute folder (or `.npz` file) of the data; a device's own `data-dir` node-config wins."""
    download: bool = False
    """Let torchvision download what `root` lacks."""
    partition: Literal["iid", "dirichlet", "classes"] = "dirichlet"
    """How simulated clients divide the training images."""
    alpha: float = 0.1
    """Dirichlet concentration; the smaller, the more skewed."""
    min_examples: int = 10
    """A Dirichlet draw is repeated until every client owns at least this many images."""
    classes_per_client: int = 2
    """For `partition = "classes"`."""
    class_names: str = ""
    """For `folder` and `npz`: comma-separated class names, in label order."""
    channels: int = 3
    """For `folder` and `npz`: 1 (grey) or 3 (colour)."""
    image_size: int = 32
    """For `folder` and `npz`: side in pixels, to which images are resized."""

    def __post_init__(self) -> None:
        _check(self.alpha > 0, "data.alpha", self.alpha, "greater than 0")
        _check(self.min_examples >= 1, "data.min-examples", self.min_examples, ">= 1")
        _check(
            self.classes_per_client >= 1,
            "data.classes-per-client",
            self.classes_per_client,
            ">= 1",
        )
        _check(self.channels in (1, 3), "data.channels", self.channels, "1 or 3")
        _check(
            8 <= self.image_size <= 1024,
            "data.image-size",
            self.image_size,
            "between 8 and 1024 pixels",
        )
        if self.name in ("folder", "npz"):
            _check(
                bool(self.class_list),
                "data.class-names",
                self.class_names,
                f"the comma-separated class names of data.name = {self.name!r}",
            )

    @property
    def class_list(self) -> tuple[str, ...]:
        """The names in `class_names`, in label order."""
        return tuple(n.strip() for n in self.class_names.split(",") if n.strip())


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """SGD on a labelled set of images; one class for clients, surrogate and global models."""

    epochs: int
    """Passes over the set."""
    lr: float
    """Learning rate at the start."""
    momentum: float = 0.0
    """Momentum of SGD."""
    weight_decay: float = 0.0
    """L2 decay of SGD."""
    batch_size: int = 32
    """Images a step."""
    augment: str = ""
    """Augmentations joined by `_`, of color, crop, cutout, flip, scale, rotate; "" for none."""


def _check_train(section: str, config: Any) -> None:  # noqa: ANN401
    _check(config.epochs >= 0, f"{section}.epochs", config.epochs, ">= 0")
    _check(config.lr > 0, f"{section}.lr", config.lr, "greater than 0")
    _check(0 <= config.momentum < 1, f"{section}.momentum", config.momentum, "in [0, 1)")
    _check(config.weight_decay >= 0, f"{section}.weight-decay", config.weight_decay, ">= 0")
    _check(config.batch_size >= 1, f"{section}.batch-size", config.batch_size, ">= 1")
    check_augment(f"{section}.augment", config.augment)


AUGMENTATIONS = ("color", "crop", "cutout", "flip", "scale", "rotate")


def check_augment(key: str, value: str) -> None:
    """Raise unless ``value`` is ``""`` or known augmentation names joined by ``_``."""
    ok = all(name in AUGMENTATIONS for name in value.split("_")) if value else True
    _check(ok, key, value, f"\"\" or names of {AUGMENTATIONS} joined by '_'")


@dataclass(frozen=True, kw_only=True)
class ClientConfig(TrainConfig):
    """Local training on a device."""

    epochs: int = 5
    """Local epochs a round."""
    lr: float = 0.05
    momentum: float = 0.0
    weight_decay: float = 0.0
    batch_size: int = 32
    augment: str = ""
    share_label_counts: bool = False
    """Send the number of images per class too; otherwise the server infers only *which* classes
    a client owns, from the reply it has anyway."""
    threads: int = 1
    """CPU threads of one client; 1 keeps simulated clients from fighting for cores."""
    device: str = "auto"
    """`auto` (CUDA where present), `cpu`, `cuda` or `cuda:N`."""

    def __post_init__(self) -> None:
        _check_train("client", self)
        _check(self.threads >= 1, "client.threads", self.threads, ">= 1")


@dataclass(frozen=True, kw_only=True)
class SurrogateConfig:
    """The small ConvNet that travels between server and clients."""

    depth: int = 3
    """Conv blocks, each halving the side."""
    width: int = 32
    """Channels of every block."""
    norm: Literal["instance", "group", "none"] = "instance"
    """Normalisation after each convolution; batch norm has no functional unroll."""

    def __post_init__(self) -> None:
        _check(1 <= self.depth <= 8, "surrogate.depth", self.depth, "between 1 and 8")
        _check(self.width >= 1, "surrogate.width", self.width, ">= 1")


@dataclass(frozen=True, kw_only=True)
class GlobalModelConfig(TrainConfig):
    """The larger models that the server trains on the synthetic union."""

    names: str = ""
    """Comma-separated, of convnet, resnet18, resnet34, vgg11, alexnet, vit; "" for none."""
    epochs: int = 30
    """Passes over the union, each round; training goes on from the last round's weights."""
    prior_epochs: int = 5
    """Passes over samples of the prior when it teaches the models alone (start and control)."""
    lr: float = 0.03
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: int = 64
    augment: str = ""

    def __post_init__(self) -> None:
        _check_train("global-model", self)
        _check(self.prior_epochs >= 0, "global-model.prior-epochs", self.prior_epochs, ">= 0")
        known = ("convnet", "resnet18", "resnet34", "vgg11", "alexnet", "vit")
        for name in self.name_list:
            _check(name in known, "global-model.names", name, f"of {known}")

    @property
    def name_list(self) -> tuple[str, ...]:
        """The names in `names`, in order, without repeats."""
        return tuple(dict.fromkeys(n.strip() for n in self.names.split(",") if n.strip()))


@dataclass(frozen=True, kw_only=True)
class GeneratorConfig:
    """The frozen, pretrained prior in whose latent space the server distils."""

    kind: Literal["glyphs", "autoencoder", "pixel"] = "glyphs"
    """`glyphs`: our class-conditional prior (fonts); `autoencoder`: any diffusers autoencoder;
    `pixel`: no prior, the images themselves are optimised."""
    path: str = ""
    """For `autoencoder`: hub id or absolute folder in diffusers' layout. For `glyphs`: another
    prior made by `feddgm-pretrain`; "" is the one that ships."""
    subfolder: str = ""
    """For `autoencoder`: folder within `path`, such as `vae`."""
    feature_block: int = 0
    """0 optimises the latent itself; n > 0 the decoder's feature after its n-th block (F_n)."""
    image_scale: int = 1
    """Decode at this multiple of the image size, then average down (2 suits 32-pixel images
    under a photographic autoencoder)."""
    chunk: int = 16
    """Images decoded at a time; more suit a GPU, and take more memory."""

    def __post_init__(self) -> None:
        _check(
            self.feature_block >= 0,
            "generator.feature-block",
            self.feature_block,
            ">= 0",
        )
        _check(
            1 <= self.image_scale <= 8,
            "generator.image-scale",
            self.image_scale,
            "1 to 8",
        )
        _check(self.chunk >= 1, "generator.chunk", self.chunk, ">= 1")
        _check(
            self.kind != "autoencoder" or bool(self.path),
            "generator.path",
            self.path,
            "a hub id or folder when generator.kind = 'autoencoder'",
        )


@dataclass(frozen=True, kw_only=True)
class DistillConfig:
    """How one client's update becomes images (METHOD step 3)."""

    images_per_class: int = 3
    """Synthetic images of each distilled class of a client (ipc)."""
    iterations: int = 30
    """Descent steps on a client's latents in its first round."""
    warm_iterations: int = 20
    """Descent steps when the latents start from the client's last round."""
    student_steps: int = 10
    """SGD steps of the student from the surrogate (N in the paper)."""
    student_batch: int = 0
    """Synthetic images a student step; 0 is the whole set."""
    student_lr: float = 0.02
    """The student's learning rate at the start; it is learned."""
    student_lr_lr: float = 0.05
    """Step on the logarithm of the student's learning rate under `adam`, on the rate itself
    under `sgd`; 0 keeps it fixed."""
    optimizer: Literal["adam", "sgd"] = "adam"
    """Of latents, labels and student learning rate."""
    latent_lr: float = 0.1
    """Step on the latents."""
    momentum: float = 0.5
    """Momentum under `sgd`."""
    gradient: Literal["exact", "detached"] = "exact"
    """Through the whole unroll, or TESLA's with each step's start held constant."""
    distance: Literal["endpoint", "cosine"] = "endpoint"
    """What the student's path is matched by: how far from the client's it ends (over how far the
    client went), or the angle between the two, whatever their lengths."""
    labels: Literal["hard", "soft"] = "hard"
    """One-hot, or learned label logits."""
    label_lr: float = 0.05
    """Step on the label logits when `labels = "soft"`."""
    augment: str = ""
    """Differentiable siamese augmentation, as `client.augment`."""
    classes: Literal["owned", "all"] = "owned"
    """Distil the classes a client owns, or all of them as the paper does."""
    warm_start: bool = True
    """Keep each client's latents on the server between rounds."""
    replay_rounds: int = 1
    """Rounds whose synthetic sets make up the union; 1 is this round's alone."""
    stop_tolerance: float = 0.0
    """Stop a client when its loss fell by less than this fraction over 5 iterations; 0 never."""
    memory_budget_mb: int = 0
    """Bound on what a client's unroll keeps; steps beyond it, and the decoder's graph, are computed
    again. 0 is unbounded."""
    engine: Literal["serial", "processes", "ray"] = "processes"
    """Where clients are distilled: in this process, in a pool of processes, as Ray tasks."""
    workers: int = 0
    """Parallel workers; 0 is one a CPU core (or one a GPU)."""
    ray_address: str = ""
    """`HOST:PORT` of the Ray cluster under `engine = "ray"`; empty joins the one that runs a
    simulation's clients, else that of the environment's `RAY_ADDRESS`, else starts one here."""
    ray_gpus: float = 1.0
    """GPUs that a Ray task takes where the server computes on CUDA; 0.5 puts two on one."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Of the student's convolutions; `bfloat16` rounds what goes in and adds up in float32."""
    compile: bool = False
    """Let torch compile what lies between the student's convolutions: seconds at the start of each
    worker, and a compiler needed."""
    device: str = "auto"
    """As `client.device`, for everything that the server computes."""

    def __post_init__(self) -> None:
        for name in ("images_per_class", "student_steps"):
            value = getattr(self, name)
            _check(value >= 1, f"distill.{name.replace('_', '-')}", value, ">= 1")
        for name in (
            "iterations",
            "warm_iterations",
            "student_batch",
            "student_lr_lr",
            "latent_lr",
            "label_lr",
            "stop_tolerance",
            "memory_budget_mb",
            "workers",
            "ray_gpus",
        ):
            value = getattr(self, name)
            _check(value >= 0, f"distill.{name.replace('_', '-')}", value, ">= 0")
        _check(self.student_lr > 0, "distill.student-lr", self.student_lr, "greater than 0")
        _check(0 <= self.momentum < 1, "distill.momentum", self.momentum, "in [0, 1)")
        _check(self.replay_rounds >= 1, "distill.replay-rounds", self.replay_rounds, ">= 1")
        check_augment("distill.augment", self.augment)


@dataclass(frozen=True, kw_only=True)
class ServerConfig(TrainConfig):
    """What the server does with the union, and how it keeps a round."""

    surrogate_update: Literal["synthetic", "aggregate", "aggregate+synthetic"] = (
        "aggregate+synthetic"
    )
    """The next surrogate: the old one trained on the union, the mean of the replies, or the mean
    of the replies trained on the union."""
    epochs: int = 20
    """Passes of the surrogate over the union."""
    lr: float = 0.003
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: int = 64
    augment: str = ""
    weight_by_examples: bool = False
    """Weigh a client's images by its example count, so that n_i speaks in the union too."""
    prior_images_per_class: int = 30
    """Fresh samples of the prior added to the union each round, where it knows the classes."""
    prior_epochs: int = 20
    """Passes over samples of the prior when it teaches the surrogate alone (start and control)."""
    prior_lr: float = 0.02
    """Learning rate of the same."""
    start: Literal["strategy", "random", "prior"] = "strategy"
    """The first models: fresh weights, or trained on the prior alone (the generator-only
    control itself), if it knows the classes. `strategy` is `prior` for feddgm and `random` for the
    baselines."""
    generator_only: bool = True
    """Report the control too: the surrogate trained on samples of the prior alone."""
    fraction_train: float = 1.0
    """Fraction of the known clients sampled a round, by partition id, seeded."""
    min_clients: int = 1
    """A round waits (at most `node-wait-s`) until this many clients are online."""
    node_wait_s: float = 300.0
    """Longest wait for `min-clients`, in seconds; then the run ends with a sentence."""
    round_timeout_s: float = 3600.0
    """Replies later than this are counted as missing."""
    federated_evaluation: bool = False
    """Let clients score the surrogate on their own test images too."""

    def __post_init__(self) -> None:
        _check_train("server", self)
        _check(
            0 < self.fraction_train <= 1,
            "server.fraction-train",
            self.fraction_train,
            "in (0, 1]",
        )
        _check(self.min_clients >= 1, "server.min-clients", self.min_clients, ">= 1")
        _check(
            self.prior_images_per_class >= 0,
            "server.prior-images-per-class",
            self.prior_images_per_class,
            ">= 0",
        )
        _check(self.prior_epochs >= 0, "server.prior-epochs", self.prior_epochs, ">= 0")
        _check(self.prior_lr > 0, "server.prior-lr", self.prior_lr, "greater than 0")
        _check(self.node_wait_s > 0, "server.node-wait-s", self.node_wait_s, "> 0 seconds")
        _check(
            self.round_timeout_s > 0,
            "server.round-timeout-s",
            self.round_timeout_s,
            "> 0 seconds",
        )


@dataclass(frozen=True, kw_only=True)
class BaselineConfig:
    """Settings of Flower's own strategies; each reads those it knows."""

    proximal_mu: float = 0.01
    """fedprox: weight of the proximal term."""
    server_lr: float = 0.0
    """fedavgm, fedadam, fedyogi, fedadagrad: step of the server's optimiser; 0 is Flower's own
    default (1, 0.1, 0.01 and 0.1)."""
    server_momentum: float = 0.9
    """fedavgm."""
    adaptivity: float = 1e-3
    """fedadam, fedyogi, fedadagrad: tau."""
    trim: float = 0.2
    """fedtrimmedavg: fraction cut at each end."""
    malicious: int = 1
    """krum: clients assumed malicious."""

    def __post_init__(self) -> None:
        _check(self.proximal_mu >= 0, "baseline.proximal-mu", self.proximal_mu, ">= 0")
        _check(self.server_lr >= 0, "baseline.server-lr", self.server_lr, ">= 0")
        _check(
            0 <= self.server_momentum < 1,
            "baseline.server-momentum",
            self.server_momentum,
            "in [0, 1)",
        )
        _check(self.adaptivity > 0, "baseline.adaptivity", self.adaptivity, "greater than 0")
        _check(0 <= self.trim < 0.5, "baseline.trim", self.trim, "in [0, 0.5)")
        _check(self.malicious >= 0, "baseline.malicious", self.malicious, ">= 0")


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One run, whole."""

    recipe: Literal["feddgm", "paper"] = "feddgm"
    """What `auto` stands for: our measured best, or the authors' settings."""
    strategy: Literal[
        "feddgm",
        "fedavg",
        "fedprox",
        "fedavgm",
        "fedadam",
        "fedyogi",
        "fedadagrad",
        "fedmedian",
        "fedtrimmedavg",
        "krum",
    ] = "feddgm"
    """FedDGM, or one of Flower's own on the same clients and data."""
    seed: int = 0
    """Everything random is derived from it: partitions, weights, batches, latents."""
    num_server_rounds: int = 5
    """Rounds in all, those before a resume counted in."""
    out_dir: str = ""
    """Absolute folder of the run; "" is a new folder under `~/feddgm-runs`."""
    resume: bool = False
    """Go on from the checkpoint in `out-dir`, bit for bit."""
    data: DataConfig = field(default_factory=DataConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    surrogate: SurrogateConfig = field(default_factory=SurrogateConfig)
    global_model: GlobalModelConfig = field(default_factory=GlobalModelConfig)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    baseline: BaselineConfig = field(default_factory=BaselineConfig)

    def __post_init__(self) -> None:
        _check(
            self.num_server_rounds >= 1,
            "num-server-rounds",
            self.num_server_rounds,
            ">= 1",
        )
        _check(self.seed >= 0, "seed", self.seed, ">= 0")

    @property
    def starts_from_prior(self) -> bool:
        """Whether the first surrogate is trained on the prior."""
        if self.server.start == "strategy":
            return self.strategy == "feddgm"
        return self.server.start == "prior"

    @classmethod
    def from_run_config(cls, flat: Mapping[str, Scalar]) -> "RunConfig":
        """Build the tree from Flower's flat run config.

        Raises
        ------
        ValueError
            An unknown key or a value out of range.
        TypeError
            A value of the wrong type.
        """
        recipe = flat.get("recipe", "feddgm")
        _check(recipe in RECIPES, "recipe", recipe, f"one of {tuple(RECIPES)}")
        said = {key: value for key, value in flat.items() if value != AUTO or key in _WORDS}
        merged = {**RECIPES[str(recipe)], **said}
        unknown = sorted(set(flat) - set(flat_keys(cls)))
        if unknown:
            raise ValueError(
                f"unknown run-config keys {unknown}; docs/config.md lists the known ones"
            )
        config: RunConfig = _build(cls, merged, "")
        return config

    def flat(self) -> dict[str, Scalar]:
        """Return the resolved dotted keys and values, as a run folder records them."""
        return {key: _get(self, key) for key in flat_keys(type(self))}


# Keys for which "auto" is a value of its own.
_WORDS = ("client.device", "distill.device")

RECIPES: dict[str, dict[str, Scalar]] = {
    "feddgm": {},
    "paper": {
        "client.epochs": 20,
        "client.lr": 0.01,
        "client.batch-size": 256,
        "surrogate.depth": 5,
        "surrogate.width": 128,
        "surrogate.norm": "instance",
        "global-model.epochs": 1000,
        "global-model.lr": 0.01,
        "global-model.momentum": 0.9,
        "global-model.weight-decay": 1e-5,
        "global-model.batch-size": 256,
        "global-model.augment": "color_crop_cutout_flip_scale_rotate",
        "generator.feature-block": 0,
        "distill.images-per-class": 10,
        "distill.iterations": 100,
        "distill.warm-iterations": 100,
        "distill.student-steps": 20,
        "distill.student-batch": 0,
        "distill.student-lr": 0.01,
        "distill.student-lr-lr": 1e-5,
        "distill.optimizer": "sgd",
        "distill.latent-lr": 1.0,
        "distill.momentum": 0.5,
        "distill.gradient": "detached",
        "distill.labels": "hard",
        "distill.augment": "color_crop_cutout_flip_scale_rotate",
        "distill.classes": "all",
        "distill.warm-start": False,
        "distill.replay-rounds": 1,
        "distill.stop-tolerance": 0.0,
        "server.start": "random",
        "server.surrogate-update": "synthetic",
        "server.epochs": 1000,
        "server.lr": 0.01,
        "server.momentum": 0.0,
        "server.batch-size": 256,
        "server.augment": "color_crop_cutout_flip_scale_rotate",
        "server.weight-by-examples": False,
        "server.prior-images-per-class": 0,
    },
}
"""Dotted key -> value; what a recipe does not name keeps its dataclass default."""


def flat_keys(config_type: type, prefix: str = "") -> dict[str, dataclasses.Field[Any]]:
    """Return every dotted kebab-case key of ``config_type`` with its dataclass field."""
    keys: dict[str, dataclasses.Field[Any]] = {}
    hints = get_type_hints(config_type)
    for f in dataclasses.fields(config_type):
        key = prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[f.name]):
            keys |= flat_keys(hints[f.name], key + ".")
        else:
            keys[key] = f
    return keys


def _build(config_type: Any, flat: Mapping[str, Scalar], prefix: str) -> Any:  # noqa: ANN401
    values: dict[str, Any] = {}
    hints = get_type_hints(config_type)
    for f in dataclasses.fields(config_type):
        key = prefix + f.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[f.name]):
            values[f.name] = _build(hints[f.name], flat, key + ".")
        elif key in flat:
            values[f.name] = _typed(key, flat[key], hints[f.name])
    return config_type(**values)


def _typed(key: str, value: Scalar, hint: Any) -> Scalar:  # noqa: ANN401
    """Return ``value`` as ``hint`` asks; an int is accepted for a float, nothing else bends."""
    if get_origin(hint) is Literal:
        _check(value in get_args(hint), key, value, f"one of {get_args(hint)}")
        return value
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise TypeError(
            f"{key} must be {hint.__name__}, got {value!r} ({type(value).__name__}); "
            "change it with -c"
        )
    typed: Scalar = value
    finite = not isinstance(typed, float) or math.isfinite(typed)
    _check(finite, key, typed, "a finite number")
    return typed


def _get(config: Any, key: str) -> Scalar:  # noqa: ANN401
    for part in key.split("."):
        config = getattr(config, part.replace("-", "_"))
    value: Scalar = config
    return value
