"""How much of the matching gradient float32 leaves, in closed form and by autograd.

Claim: docs/speed.md. The paper's student (width 128, its learning rate) takes up to 20 steps on 30
images of the prior; loss and image gradient (detached) in float32 against autograd in float64. A
student that does not settle amplifies rounding, so that from some depth and length on no two ways
of computing the same gradient agree, whatever their order of operations.

    python benchmarks/float32_error.py [cifar-paper-3 ...] --weights FOLDER --data PACK.npz
"""

import argparse
from pathlib import Path

import torch
from distill_speed import build_case, placed
from torch.nn.functional import one_hot

from feddgm_flwr.core.distillation.convnet import ConvNetStudent
from feddgm_flwr.core.distillation.distill import student_input
from feddgm_flwr.core.distillation.matching import MatchingGradients, matching_gradients
from feddgm_flwr.core.distillation.student import AutogradStudent, Student

STEPS = (1, 5, 10, 20)
IMAGES = 30


def rows(name: str, options: argparse.Namespace) -> list[str]:
    """Return a case's table rows."""
    case = build_case(name, options)
    bench, job = placed(case.bench), case.job
    labels = torch.arange(IMAGES) % 10
    latents = bench.prior.sample(labels, rng=torch.Generator().manual_seed(0))
    with torch.no_grad():
        images = bench.prior.decode(latents)
    targets = one_hot(labels, 10).float()

    def gradients(student: Student, dtype: torch.dtype, steps: int) -> MatchingGradients:
        bench.student.to(dtype)
        return matching_gradients(
            student,
            student_input(bench, job, 0, IMAGES),
            {k: p.to(dtype) for k, p in job.start.items()},
            {k: p.to(dtype) for k, p in job.target.items()},
            images.to(dtype),
            targets.to(dtype),
            torch.tensor(bench.config.student_lr, dtype=dtype),
            steps=steps,
            exact=False,
        )

    lines = []
    for steps in STEPS:
        truth = gradients(AutogradStudent(bench.student), torch.float64, steps)
        cells = []
        for kind in (AutogradStudent, ConvNetStudent):
            found = gradients(kind(bench.student), torch.float32, steps)
            away = (found.images.double() - truth.images).norm() / truth.images.norm()
            cells += [f"{abs(float(found.loss / truth.loss) - 1):.0e}", f"{float(away):.0e}"]
        lines.append(f"| {name} | {steps} | {float(truth.loss):.3f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("cases", nargs="*", default=["cifar-paper-3", "cifar-paper-5"])
    parser.add_argument("--weights", default="")
    parser.add_argument("--data", type=Path)
    parser.set_defaults(iterations=1, budget=None, device=torch.device("cpu"))
    options = parser.parse_args()
    print(
        "| case | steps | loss, float64 | autograd: loss | gradient | closed form: loss "
        "| gradient |\n|---|---|---|---|---|---|---|"
    )
    for name in options.cases:
        print("\n".join(rows(name, options)), flush=True)


if __name__ == "__main__":
    main()
