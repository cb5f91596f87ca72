"""FedDGM as a Flower app: federated learning by server-side dataset distillation.

One round: clients train a small surrogate and reply with its parameters; the server turns each
reply into a few synthetic images, by trajectory matching in the latent space of a frozen
pretrained prior; it trains global models of any architecture, and the next surrogate, on the
union of those images. ``algorithm.py`` is that on one screen.
"""

__version__ = "0.2.0"
