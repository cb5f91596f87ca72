"""Images that the server has itself, for scoring and for the picture of who owns what."""

import logging

from feddgm_flwr.core.images import ImageSet
from feddgm_flwr.data import datasets
from feddgm_flwr.data.own import NoImagesError
from feddgm_flwr.data.settings import OWN, TORCHVISION, DataConfig

logger = logging.getLogger(__name__)


def server_images(config: DataConfig, part: datasets.Part) -> ImageSet | None:
    """Return a part of the data set; None, and a line in the log, where it is not here.

    Raises
    ------
    ValueError
        It is here and damaged, which must not pass for absent.
    """
    if config.name in (*TORCHVISION, *OWN) and not config.root:
        logger.info("the server has no %s images: data.root is empty", part)
        return None
    try:
        return datasets.load(config, part)
    except (FileNotFoundError, NoImagesError) as error:
        logger.warning("the server has no %s images: %s", part, error)
        return None
