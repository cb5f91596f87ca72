"""Any Flower strategy, watched: what each round and each client does, as events in a log.

``Watched(strategy, runs).start(grid, ...)`` does what ``strategy.start`` does: the strategy's own
``start`` runs, with its own hooks, each of which tells; so does the grid. Strategies that bring
their own ``start`` or send messages by themselves are told of as far as they use either. Needs
Flower alone.
"""

import inspect
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from flwr_dashboard.endpoint import Endpoint
from flwr_dashboard.grid import WatchedGrid
from flwr_dashboard.story import Story
from flwr_dashboard.writer import RunLog

HOOKS = ("configure_train", "aggregate_train", "configure_evaluate", "aggregate_evaluate")


class Watched(Strategy):
    """A strategy that tells what happens.

    Parameters
    ----------
    strategy
        Any of Flower's, or your own.
    runs
        The folder of runs, the one that the dashboard is given; each start makes a folder in it.
        Absolute, or under ``~``: a ServerApp runs in a folder of Flower's choice.
    config
        What the page shows as the run's settings: ``context.run_config``, say.
    metrics_port
        Port at which the run offers ``/metrics`` to Prometheus, on this machine alone; 0 is none.

    Attributes
    ----------
    folder
        The folder of the last run; None before the first.

    Raises
    ------
    ValueError
        ``runs`` is relative; or, at ``start``, the port is taken.
    OSError
        The log cannot be written, at ``start``.
    """

    def __init__(
        self,
        strategy: Strategy,
        runs: str | Path,
        *,
        config: Mapping[str, Any] | None = None,
        metrics_port: int = 0,
    ) -> None:
        self._runs = Path(runs).expanduser()
        if not self._runs.is_absolute():
            raise ValueError(
                f"runs must be an absolute path or begin with ~, got {str(runs)!r}, because a "
                "ServerApp runs in a folder of Flower's choice; write the whole path"
            )
        self._strategy, self._config = strategy, dict(config or {})
        self._metrics_port = metrics_port
        self.folder: Path | None = None

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401
        # Whoever asks for what the strategy has beyond Flower's own gets it.
        return getattr(self.__dict__["_strategy"], name)

    def start(self, grid: Grid, *args: Any, **kwargs: Any) -> Result:  # noqa: ANN401
        """Run the strategy's own ``start`` with the same arguments, telling."""
        said = inspect.signature(self._strategy.start).bind(grid, *args, **kwargs)
        said.apply_defaults()
        name = type(self._strategy).__name__
        self.folder = new_folder(self._runs, name)
        with ExitStack() as stack:
            listeners = []
            if self._metrics_port:
                endpoint = Endpoint(self.folder.name, "127.0.0.1", self._metrics_port)
                listeners.append(stack.enter_context(endpoint).take)
            log = stack.enter_context(RunLog(self.folder, *listeners))
            rounds = said.arguments.get("num_rounds")
            story = Story(log.tell, rounds if type(rounds) is int else 0)
            story.begin(name, grid, self._config)
            watched = WatchedGrid(grid, sent=story.sent, arrived=story.arrived, silent=story.silent)
            said.arguments[next(iter(said.arguments))] = watched
            score = said.arguments.get("evaluate_fn")
            if score is not None:
                said.arguments["evaluate_fn"] = story.scoring(score)
            with telling(self._strategy, story):
                result = self._strategy.start(*said.args, **said.kwargs)
            story.end_round()
            return result

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Do as the strategy does."""
        return self._strategy.configure_train(server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Do as the strategy does."""
        return self._strategy.aggregate_train(server_round, replies)

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Do as the strategy does."""
        return self._strategy.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Do as the strategy does."""
        return self._strategy.aggregate_evaluate(server_round, replies)

    def summary(self) -> None:
        """Do as the strategy does."""
        self._strategy.summary()


@contextmanager
def telling(strategy: Strategy, story: Story) -> Iterator[None]:
    """Let ``strategy``'s own hooks tell while the block runs."""
    before = {name: vars(strategy)[name] for name in HOOKS if name in vars(strategy)}
    for name in HOOKS:
        setattr(strategy, name, getattr(story, name)(getattr(strategy, name)))
    try:
        yield
    finally:
        for name in HOOKS:
            delattr(strategy, name)
        for name, hook in before.items():
            setattr(strategy, name, hook)


def new_folder(runs: Path, name: str) -> Path:
    """Make and return a folder for one run, named by when it begins and by what it is."""
    stem = f"{time.strftime('%Y%m%d-%H%M%S')}-{name.lower()}"
    for number in range(1, 1000):
        folder = runs / (stem if number == 1 else f"{stem}-{number}")
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
            return folder
    raise FileExistsError(f"{runs} holds 1,000 runs that began in this second; name another folder")
