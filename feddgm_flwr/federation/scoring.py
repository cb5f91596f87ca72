"""Accuracy and loss of every model on the server's own test images, where it has some.

And what they say of the prior: whether the first round's images cost accuracy.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.core.state import ServerState
from feddgm_flwr.monitoring.results import Scores

MARGIN = 0.01
"""Of accuracy; by less the images' model may fall behind the plain mean without a word."""


def falls_behind(images: float, mean: float, control: float | None) -> str:
    """Return a warning where learning from images gave less than the plain mean of the replies.

    Parameters
    ----------
    images, mean
        Accuracy of the surrogate after the first round, and of the mean of its replies.
    control
        Accuracy that the prior alone teaches, if known.
    """
    if images >= mean - MARGIN:
        return ""
    alone = "" if control is None else f" (the prior alone teaches {100 * control:.1f} %)"
    return (
        f"the images cost accuracy: the surrogate scores {100 * images:.1f} % after round 1, the "
        f"plain mean of the clients' replies {100 * mean:.1f} %{alone}; try another prior.kind, a "
        "bank of public pictures (feddgm-pretrain --autoencoder), or a larger union.aggregate-share"
    )


class Scorer:
    """Scores models on one test set.

    Parameters
    ----------
    models
        Each surrogate and global model by name -> architecture; the weights are scratch space.
    test
        None where the server has no test images; then nothing is scored.
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        test: ImageSet | None,
        device: torch.device,
    ) -> None:
        self._models, self._device = models, device
        self._test = (
            None if test is None else ImageSet(test.images.to(device), test.labels.to(device))
        )

    @property
    def has_images(self) -> bool:
        """Whether there is anything to score on."""
        return self._test is not None

    def __call__(self, state: ServerState) -> Scores:
        """Score the surrogates and the global models of ``state``."""
        return self.score(state.models)

    def score(self, weights: Mapping[str, Mapping[str, Tensor]]) -> Scores:
        """Score each named model with the weights given."""
        scores = Scores()
        if self._test is None:
            return scores
        for name, values in weights.items():
            model = self._models[name]
            model.load_state_dict(dict(values))
            model.to(self._device)
            found = evaluate(model, self._test.images, self._test.labels)
            model.to("cpu")
            scores.accuracy[name], scores.loss[name] = found.accuracy, found.loss
            for metric, value in found.metrics.items():
                scores.metrics.setdefault(metric, {})[name] = value
        return scores
