"""The parts of a run, put together from its config, without Flower."""

from feddgm_flwr.config import DistillConfig
from feddgm_flwr.core.distillation.distill import Bench
from feddgm_flwr.core.distillation.engine import (
    Engine,
    ProcessEngine,
    SerialEngine,
    default_workers,
)


def build_engine(config: DistillConfig, bench: Bench) -> Engine:
    """Return the engine that ``config`` names; close it after the run."""
    match config.engine:
        case "serial":
            return SerialEngine(bench)
        case "processes":
            workers = config.workers or default_workers(bench.device)
            return SerialEngine(bench) if workers == 1 else ProcessEngine(bench, workers)
        case "ray":
            from feddgm_flwr.cluster import RayEngine

            return RayEngine(
                bench,
                workers=config.workers,
                address=config.ray_address,
                gpus=config.ray_gpus,
            )
