"""``python -m flwr_dashboard`` is the command ``flwr-dashboard``."""

import sys

from flwr_dashboard.cli import main

if __name__ == "__main__":
    sys.exit(main())
