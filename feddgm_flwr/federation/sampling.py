"""Which clients a round asks, keyed by partition id so that a seed means the same in every run.

Knows no node and no message.
"""

from collections.abc import Sequence

import torch

from feddgm_flwr.core.seeding import derive


def sampled(
    partition_ids: Sequence[int], fraction: float, seed: int, server_round: int
) -> list[int]:
    """Return the ids of one round's clients in order: ``fraction`` of them, at least one."""
    count = max(1, round(fraction * len(partition_ids)))
    order = torch.randperm(len(partition_ids), generator=derive(seed, "sample", server_round))
    return sorted(partition_ids[i] for i in order[:count])
