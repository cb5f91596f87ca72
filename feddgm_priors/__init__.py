"""Weights of the priors that ship with the project: data, no code beyond finding it.

A package of its own because a Flower bundle drops binary files and hides an installed
package of the same name: this one is left out of the bundle, so that it is found where
the project is installed.
"""

from pathlib import Path


def path(name: str) -> Path:
    """Return the folder of the prior called ``name``; it may be missing."""
    return Path(__file__).parent / name
