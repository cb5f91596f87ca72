"""The least federation that has everything: what tests of whole runs tell their config."""

SMALL = {
    "num-server-rounds": 2,
    "data.name": "digits",
    "data.alpha": 0.5,
    "client.epochs": 1,
    "surrogate.depth": 2,
    "surrogate.width": 8,
    "prior.kind": "pixel",
    "distill.images-per-class": 1,
    "distill.iterations": 2,
    "distill.warm-iterations": 2,
    "distill.student-steps": 2,
    "distill.engine": "serial",
    "union.epochs": 2,
    "start.control": False,
}
