"""The settings of distillation, apart from it: a device reads them and computes none of it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

from feddgm_flwr.core.augment import NAMES, PAPER
from feddgm_flwr.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class DistillConfig(Settings):
    """How one client's update becomes images (paper, step 3), and where."""

    section: ClassVar[str] = "distill"

    of: Literal["clients", "aggregate"] = setting(
        "clients",
        "Whose updates become images: each client's own, or the mean of the replies alone "
        "(`server.aggregate` says which mean), so that no single client's update is inverted, nor "
        "anything else made of it; one set of images then stands for all (docs/privacy.md).",
    )
    images_per_class: int = setting(
        3, "Synthetic images of each distilled class of a client (ipc).", ge=1, paper=10
    )
    iterations: int = setting(
        30, "Descent steps on a client's latents in its first round.", ge=0, paper=100
    )
    warm_iterations: int = setting(
        8,
        "Descent steps when the latents start from the client's last round.",
        ge=0,
        paper=100,
    )
    student_steps: int = setting(
        10, "SGD steps of the student from the surrogate (N in the paper).", ge=1, paper=20
    )
    student_batch: int = setting(0, "Synthetic images a student step; 0 is the whole set.", ge=0)
    student_lr: float = setting(
        0.02, "The student's learning rate at the start; it is learned.", gt=0, paper=0.01
    )
    student_lr_lr: float = setting(
        0.05,
        "Step on the logarithm of the student's learning rate under `adam`, on the rate itself "
        "under `sgd`; 0 keeps it fixed.",
        ge=0,
        paper=1e-5,
    )
    optimizer: Literal["adam", "sgd"] = setting(
        "adam", "Of latents, labels and student learning rate.", paper="sgd"
    )
    latent_lr: float = setting(0.1, "Step on the latents.", ge=0, paper=1.0)
    momentum: float = setting(
        0.5, "Momentum under `sgd`.", ge=0, lt=1, only={"optimizer": ("sgd",)}
    )
    gradient: Literal["exact", "detached"] = setting(
        "exact",
        "Through the whole unroll, or TESLA's with each step's start held constant.",
        paper="detached",
    )
    labels: Literal["hard", "soft"] = setting("hard", "One-hot, or learned label logits.")
    label_lr: float = setting(0.05, "Step on the label logits.", ge=0, only={"labels": ("soft",)})
    prior_weight: float = setting(
        0.0,
        "Penalty on the squared distance of latents to where the prior put them, in units of its "
        "spread; the matching loss counts 1 at its start.",
        ge=0,
    )
    augment: str = setting(
        "",
        "Differentiable siamese augmentation, as `client.augment`.",
        words=NAMES,
        paper=PAPER,
    )
    classes: Literal["owned", "all"] = setting(
        "owned", "Distil the classes a client owns, or all of them as the paper does.", paper="all"
    )
    warm_start: bool = setting(
        True, "Keep each client's latents on the server between rounds.", paper=False
    )
    stop_tolerance: float = setting(
        0.0,
        "Stop a client when its loss fell by less than this fraction over 5 iterations; 0 never.",
        ge=0,
    )
    precision: Literal["float32", "bfloat16"] = setting(
        "float32",
        "Of the student's convolutions; `bfloat16` rounds what goes in and adds up in float32.",
    )
    compile: bool = setting(
        False,
        "Let torch compile what lies between the student's convolutions: seconds at the start of "
        "each worker, and a compiler needed.",
    )
    memory_budget_mb: int = setting(
        0,
        "Bound on what a client's unroll keeps; steps beyond it, and the decoder's graph, are "
        "computed again, to the same bits. 0 is unbounded.",
        ge=0,
        may_differ=True,
    )
    engine: Literal["serial", "processes", "ray"] = setting(
        "processes",
        "Where clients are distilled: in the server's process, in a pool of processes, as Ray "
        "tasks.",
        may_differ=True,
    )
    workers: int = setting(
        0,
        "Parallel workers; 0 is one a CPU core (or one a GPU).",
        ge=0,
        may_differ=True,
        only={"engine": ("processes", "ray")},
    )
    ray_address: str = setting(
        "",
        "`HOST:PORT` of the Ray cluster; empty joins the one that runs a simulation's clients, "
        "else that of the environment's `RAY_ADDRESS`, else starts one here.",
        may_differ=True,
        only={"engine": ("ray",)},
    )
    ray_gpus: float = setting(
        1.0,
        "GPUs that a Ray task takes where the server computes on CUDA; 0.5 puts two on one.",
        ge=0,
        may_differ=True,
        only={"engine": ("ray",)},
    )
