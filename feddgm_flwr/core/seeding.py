"""Randomness with an address: every draw is keyed by what it is for.

Never by node id, reply order or the clock, so that a client's draw does not depend on who else
answered. Knows no tensor shapes.
"""

import zlib

import numpy as np
import torch


def derive_seed(seed: int, purpose: str, *address: int) -> int:
    """Return a 63-bit seed for ``purpose`` at ``address`` (round, partition id, ...).

    A purpose has addresses of one length: with zeros at its end a longer one is the shorter.
    """
    # An aggregate's address is negative; as 64 bits of two's complement it is one like any other.
    words = [seed, zlib.crc32(purpose.encode()), *(a % 2**64 for a in address)]
    low, high = np.random.SeedSequence(words).generate_state(2, np.uint32)
    return (int(high) << 31) ^ int(low)


def derive(seed: int, purpose: str, *address: int) -> torch.Generator:
    """Return a CPU generator seeded by ``derive_seed``."""
    return torch.Generator().manual_seed(derive_seed(seed, purpose, *address))
