"""What the glyph prior is worth by itself on real digits, which it has never seen.

    python benchmarks/glyph_prior.py [--path FOLDER] [--seeds 3]

Prints, for the 1,000 test digits of mnist5k: the accuracy of a ConvNet that was trained on samples
of the prior alone (100 a class); how closely the decoder can be moved to real digits by descent on
its latents (PSNR after 300 steps of Adam at 0.1, from samples of class 0); and what decoding costs.
Real digits are only looked at here: the prior is not changed by them.
"""

import argparse
import statistics
import time

import torch

from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.images import ImageSet, ImageSpec
from feddgm_flwr.core.models import SurrogateConfig, build_surrogate, initialise
from feddgm_flwr.core.prior import Prior
from feddgm_flwr.core.seeding import derive
from feddgm_flwr.core.training import TrainConfig, train
from feddgm_flwr.data.datasets import load, spec_of
from feddgm_flwr.data.settings import DataConfig
from feddgm_flwr.priors import build_prior
from feddgm_flwr.priors.settings import PriorConfig


def generator_only(prior: Prior, spec: ImageSpec, test: ImageSet, seed: int) -> float:
    """Return the accuracy of a ConvNet that has seen nothing but samples."""
    labels = torch.arange(spec.num_classes).repeat_interleave(100)
    latents = prior.sample(labels, rng=derive(seed, "samples"))
    images = prior.decode(latents).clamp(0, 1)
    model = build_surrogate(SurrogateConfig(depth=3, width=32), spec)
    initialise(model, rng=derive(seed, "weights"))
    config = TrainConfig(
        epochs=20, lr=0.02, momentum=0.9, batch_size=64, augment="crop_scale_rotate"
    )
    train(model, images, labels, config, rng=derive(seed, "training"))
    return evaluate(model, test.images, test.labels).accuracy


def reach(prior: Prior, test: ImageSet, count: int = 100) -> float:
    """Return the mean PSNR of ``count`` real digits drawn by descent on latents."""
    picks = torch.randperm(len(test), generator=derive(0, "digits"))[:count]
    real = test.images[picks]
    start = prior.sample(torch.zeros(count, dtype=torch.long), rng=derive(0, "start"))
    latents = start.requires_grad_()
    optimizer = torch.optim.Adam([latents], lr=0.1)
    for _ in range(300):
        optimizer.zero_grad()
        error = (prior.decode(latents) - real).square().mean((1, 2, 3))
        error.sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return float((-10 * error.detach().log10()).mean())


def decode_ms(prior: Prior) -> float:
    """Return milliseconds to decode 50 images and differentiate them."""
    latents = prior.sample(torch.zeros(50, dtype=torch.long), rng=derive(0, "cost"))
    latents.requires_grad_()
    times = []
    for _ in range(10):
        began = time.perf_counter()
        prior.decode(latents).sum().backward()  # type: ignore[no-untyped-call]
        times.append(time.perf_counter() - began)
    return 1000 * min(times)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--path", default="", help="a prior of feddgm-pretrain")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = DataConfig(name="mnist5k")
    spec, test = spec_of(data), load(data, "test")
    prior = build_prior(PriorConfig(kind="glyphs", path=options.path), spec)
    scores = [generator_only(prior, spec, test, seed) for seed in range(options.seeds)]
    spread = statistics.stdev(scores) if len(scores) > 1 else 0.0
    print(f"generator only: {statistics.mean(scores):.3f} +- {spread:.3f}")
    print(f"real digits by descent: {reach(prior, test):.1f} dB")
    print(f"decode and differentiate 50 images, one core: {decode_ms(prior):.0f} ms")


if __name__ == "__main__":
    main()
