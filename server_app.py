"""The server's half: config -> prior, state -> the strategy's rounds -> save."""

from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.federation.assembly import (
    device_of,
    run_folder,
    said_plainly,
    say_hello,
    show_log,
)
from feddgm_flwr.federation.server_side import (
    add_control,
    draw_owners,
    draw_results,
    draw_round,
    save_models,
    server_side,
)
from feddgm_flwr.federation.strategy import RoundKeeper
from feddgm_flwr.monitoring.events import EventLog, LogFollower

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from its config to its results."""
    show_log()
    keep_freed_memory()
    with said_plainly():
        config = RunConfig.from_run_config(context.run_config)
        folder = run_folder(config)
        device = device_of("distill.device", config.distill.device)
        say_hello(config, folder, device)
        with EventLog(folder, LogFollower()) as log:
            federate(grid, config, folder, device, log)


def federate(
    grid: Grid, config: RunConfig, folder: Path, device: torch.device, log: EventLog
) -> None:
    """Put the parts together, do the rounds, save what came of them."""
    spec = spec_of(config.data)
    with server_side(config, spec, folder, device, log.emit) as parts:
        strategy = RoundKeeper(
            config,
            parts.arithmetic,
            parts.state,
            num_classes=spec.num_classes,
            results=parts.results,
            out_dir=folder,
            emit=log.emit,
            score=parts.scorer,
            show=draw_round(folder, spec),
        )
        strategy.roster.online(grid)
        draw_owners(config, spec, strategy.roster.num_partitions, folder)
        add_control(config, parts)
        strategy.run(grid)
        save_models(strategy.state, folder)
        draw_results(strategy.results, folder)
