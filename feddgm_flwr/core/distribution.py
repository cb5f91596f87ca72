"""Images that stand for a client's own: they look the same to models around the received one.

FedDM's local objective (Xiong et al., arXiv 2207.09653): with h_w the features that the classifier
sees and z_w the logits of a model w drawn around what was received, the synthetic images S minimise

    E_w  sum_c  | mean h_w(D_c) - mean h_w(S_c) |^2 + | mean z_w(D_c) - mean z_w(S_c) |^2
    w = theta_t + g min(1, rho / |g|),  g standard normal

by SGD, over minibatches of the client's images D_c of each class c that it owns. Knows no server.
Axes: ``n`` images, ``k`` classes, ``d`` features, ``c h w`` one image.
"""

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from feddgm_flwr.core.augment import augment
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.params import Params, dot, load_params
from feddgm_flwr.core.training import pixels_of

MOMENTUM = 0.5
"""Of the images' SGD."""


def perturbed(params: Params, radius: float, *, rng: torch.Generator) -> Params:
    """Return ``params`` moved by a Gaussian step no longer than ``radius``."""
    away = {k: torch.randn(p.shape, generator=rng).to(p) for k, p in params.items()}
    share = min(1.0, radius / float(dot(away, away).sqrt()))
    return {k: p + share * away[k] for k, p in params.items()}


def seen(model: nn.Module, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n d"]:
    """Return features and logits side by side, by a model whose last child is its classifier."""
    *features, classifier = model.children()
    for part in features:
        images = part(images)
    return torch.cat([images, classifier(images)], 1)


def class_means(
    values: Float[Tensor, "n d"], labels: Int[Tensor, " n"], num_classes: int
) -> Float[Tensor, "k d"]:
    """Return the mean over each class's rows; 0 for a class without any."""
    member = nn.functional.one_hot(labels, num_classes).to(values)
    return member.t() @ values / member.sum(0).clamp_min(1)[:, None]


def minibatch(labels: Int[Tensor, " n"], each: int, *, rng: torch.Generator) -> Int[Tensor, " m"]:
    """Return the indices of at most ``each`` images a class, drawn."""
    order = torch.randperm(len(labels), generator=rng)
    return torch.cat([order[labels[order] == c][:each] for c in labels.unique()])


def first_images(
    data: ImageSet, each: int, *, real: bool, rng: torch.Generator
) -> tuple[Float[Tensor, "m c h w"], Int[Tensor, " m"]]:
    """Return ``each`` images of every class in ``data``: uniform noise, or own images drawn."""
    labels = data.labels.unique().repeat_interleave(each)
    if not real:
        return torch.rand((len(labels), *data.images.shape[1:]), generator=rng), labels
    drawn = torch.rand(len(labels), generator=rng)
    own = [(data.labels == c).nonzero().flatten() for c in labels.tolist()]
    rows = [int(i[int(u * len(i))]) for i, u in zip(own, drawn, strict=True)]
    return data.images[rows], labels


def match_distributions(
    model: nn.Module,
    data: ImageSet,
    params: Params,
    images: Float[Tensor, "m c h w"],
    labels: Int[Tensor, " m"],
    *,
    iterations: int,
    lr: float,
    radius: float,
    batch_size: int,
    augmented: str,
    rng: torch.Generator,
    device: torch.device,
) -> tuple[Float[Tensor, "m c h w"], float]:
    """Return ``images`` after the descent, on the CPU, and the loss of its last step.

    Parameters
    ----------
    model
        The architecture, on ``device``; its weights are scratch space.
    batch_size
        Own images of each class a step.
    augmented
        Augmentation, the same for own and synthetic images.
    """
    num_classes, pixels, loss = int(data.labels.max()) + 1, pixels_of(model), torch.zeros(())

    def means(shown: Tensor, of: Tensor, draw: torch.Generator) -> Tensor:
        view = augment(shown.to(device), augmented, rng=draw, siamese=True, pixels=pixels)
        return class_means(seen(model, view), of.to(device), num_classes)

    made = images.to(device).requires_grad_()
    optimizer = torch.optim.SGD([made], lr=lr, momentum=MOMENTUM)
    for _ in range(iterations):
        load_params(model, perturbed(params, radius, rng=rng))
        chosen = minibatch(data.labels, batch_size, rng=rng)
        twin = rng.clone_state()
        with torch.no_grad():
            own = means(data.images[chosen], data.labels[chosen], twin)
        loss = (own - means(made, labels, rng)).square().sum()
        (made.grad,) = torch.autograd.grad(loss, made)
        optimizer.step()
    return made.detach().cpu(), float(loss.detach())
