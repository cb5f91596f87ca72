"""A stock FedAvg app, watched; ``flwr-dashboard ~/flower-runs`` shows it while it runs."""

import numpy as np
from flwr.app import ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr_dashboard.watched import Watched

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run FedAvg as ever: only the second line is new."""
    strategy = FedAvg(min_available_nodes=1, min_train_nodes=1, min_evaluate_nodes=1)
    strategy = Watched(strategy, context.run_config["runs"], config=context.run_config)
    strategy.start(grid, ArrayRecord([np.zeros(4)]), num_rounds=3)
