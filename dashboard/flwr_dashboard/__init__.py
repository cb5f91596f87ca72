"""A live dashboard for Flower runs: reads the event logs of a folder, and nothing else.

``log`` tails a file, ``state`` folds its events into a run, ``svg`` and the templates draw it;
``server``, ``report``, ``metrics`` and ``tensorboard`` hand it out. Knows neither Flower nor any
method: what it reads is described in ``docs/events.md``, and what it does not know it shows as is.
"""

__version__ = "0.1.0"
