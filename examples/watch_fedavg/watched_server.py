"""A stock FedAvg app, watched; ``flwr-dashboard ~/flower-runs`` shows it while it runs."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from flwr_dashboard.watched import Watched

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg as ever, but for the word ``Watched``."""
    strategy = Watched(FedAvg(), "~/flower-runs", config=context.run_config)
    strategy.start(grid, ArrayRecord([np.zeros(4)]), num_rounds=3)
