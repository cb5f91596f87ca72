"""The server's half: config -> tools, state -> the keeper's rounds -> save."""

from functools import partial
from pathlib import Path

import torch
from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from feddgm_flwr.config import RunConfig, said_keys
from feddgm_flwr.core.distillation.progress import Gallery
from feddgm_flwr.core.memory import keep_freed_memory
from feddgm_flwr.data.datasets import spec_of
from feddgm_flwr.federation.checkpoint import NOBODY, Checkpoint
from feddgm_flwr.federation.facts import gpu_load
from feddgm_flwr.federation.folder import (
    draw_owners,
    draw_results,
    draw_round,
    run_folder,
    save_models,
)
from feddgm_flwr.federation.guard import GuardedGrid
from feddgm_flwr.federation.keeper import RoundKeeper
from feddgm_flwr.federation.ledger import Ledger
from feddgm_flwr.federation.lock import held
from feddgm_flwr.federation.log import said_plainly, show_log
from feddgm_flwr.federation.machine import device_of
from feddgm_flwr.federation.saving import insist
from feddgm_flwr.federation.server import Said, add_control, restored, say_hello, server_side
from feddgm_flwr.monitoring.events import EventLog, LogFollower
from feddgm_flwr.monitoring.figures import figures
from feddgm_flwr.monitoring.sprites import Sprites

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run a federation from its config to its results."""
    show_log()
    keep_freed_memory()
    with said_plainly():
        config = RunConfig.from_run_config(context.run_config)
        folder = run_folder(config)
        device = device_of("server.device", config.server.device)
        say_hello(config, folder, device)
        watch = config.watch
        with held(folder):
            saved = restored(config, folder)  # before the log: a refused resume must not touch it
            ledger = Ledger(config, folder) if config.privacy.on else None  # likewise
            with (
                figures(folder.name, watch.metrics_host, watch.metrics_port) as listeners,
                EventLog(folder, LogFollower(), *listeners, load=partial(gpu_load, device)) as log,
            ):
                said = Said(said_keys(context.run_config), str(context.run_id))
                federate(GuardedGrid(grid), config, folder, saved, device, log, said, ledger)


def federate(
    grid: Grid,
    config: RunConfig,
    folder: Path,
    saved: Checkpoint | None,
    device: torch.device,
    log: EventLog,
    said: Said,
    ledger: Ledger | None,
) -> None:
    """Put the parts together, do the rounds, save what came of them."""
    spec = spec_of(config.data)
    watch = config.watch
    sprites = Sprites(folder, log.emit, images=watch.images, room_mb=watch.pictures_mb)
    gallery = Gallery(room=watch.growing, show=sprites.show)
    with server_side(config, spec, saved, device, log.emit, gallery, said) as side:
        keeper = RoundKeeper(
            config,
            side.half,
            side.state,
            num_classes=spec.num_classes,
            prior=side.prior,
            known=NOBODY if saved is None else saved.known,
            num_threads=side.num_threads,
            results=side.results,
            out_dir=folder,
            emit=log.emit,
            score=side.scorer,
            show=draw_round(folder, spec, log.emit, sprites),
            judge=side.judge,
            ledger=ledger,
        )
        keeper.meet(grid)
        draw_owners(config, spec, keeper.roster.num_partitions, folder)
        add_control(side, log.emit)
        keeper.run(grid)
        models = side.half.shown(keeper.state)
        insist(partial(save_models, models, folder), "the models", folder)
        draw_results(keeper.results, folder)
