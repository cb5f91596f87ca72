"""Priors whose worker dies, as one that meets the end of the machine's memory does."""

import os
import signal
import time
from pathlib import Path

import torch

from feddgm_flwr.core.distillation.distill import Bench, DistillJob
from feddgm_flwr.core.distillation.settings import DistillConfig
from feddgm_flwr.core.images import ImageSpec
from feddgm_flwr.core.models import SurrogateConfig, build_surrogate
from feddgm_flwr.core.params import params_of
from feddgm_flwr.priors.pixel import PixelPrior


class DiesOfMany(PixelPrior):
    """Kills its process where a client has four images or more, whenever it is tried."""

    def sample(self, labels, *, rng):
        if len(labels) >= 4:
            os._exit(9)
        return super().sample(labels, rng=rng)


class DiesWhileItTells(PixelPrior):
    """Kills its process once, just when a message that fills the pipe is under way."""

    def __init__(self, spec, mark: Path):
        super().__init__(spec)
        self.mark, self.calls = mark, 0

    def decode(self, latents):
        self.calls += 1
        if self.calls == 2 and not self.mark.exists():
            self.mark.touch()
            time.sleep(0.05)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().decode(latents)


def bench(prior, spec):
    """Return what a worker works with."""
    net = build_surrogate(SurrogateConfig(depth=1, width=4), spec)
    config = DistillConfig(iterations=3, student_steps=1)
    return Bench(net, prior, config, spec, 16, torch.device("cpu"))


def job(made, number, counts, glimpses=0):
    """Return one client's job on ``made``, a bench."""
    start = params_of(made.student)
    end = {name: value + 0.01 for name, value in start.items()}
    return DistillJob(number, 1, 0, start, end, counts, None, glimpses=glimpses)


GREY = ImageSpec(1, 8, ("a", "b"), (0.5,), (0.25,))
COLOUR = ImageSpec(3, 64, ("a", "b"), (0.5,) * 3, (0.25,) * 3)
