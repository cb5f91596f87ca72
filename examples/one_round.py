"""One round of Algorithm 1 (arXiv 2312.01537) on four clients: python examples/one_round.py."""

from feddgm_flwr.build import build_tools, first_state, workshop
from feddgm_flwr.config import RunConfig
from feddgm_flwr.core.algorithm import apply_round
from feddgm_flwr.core.evaluation import evaluate
from feddgm_flwr.core.local import Task
from feddgm_flwr.core.params import load_params
from feddgm_flwr.data import datasets, partition
from feddgm_flwr.methods.client import Client

said = {"data.name": "digits", "data.alpha": 0.3, "start.weights": "random", "surrogate.width": 16}
fast = {"distill.iterations": 10, "distill.engine": "serial", "union.prior-images-per-class": 0}
config = RunConfig.from_run_config(said | fast)
spec, test = datasets.spec_of(config.data), datasets.load(config.data, "test")
tools = build_tools(config, spec)  # the surrogate and the frozen generator G
state = first_state(config, tools, emit=lambda event: None)  # theta_t, t = 0

task, updates = Task(state.surrogate, server_round=1), []  # 1. broadcast theta_t
for i in range(4):  # 2. each client trains it on images of its own: theta_i
    own = partition.client_images(config.data, "train", partition_id=i, num_partitions=4, seed=0)
    updates.append(Client(config, spec, i).update(task, own))
with workshop(config, tools) as shop:  # 3. latents Z_i, 4. their union S_t, 5. learn from S_t
    after, report = apply_round(state, updates, shop, emit=lambda event: None)
print(*report.distilled, sep="\n")
accuracy = []
for params in (state.surrogate, after.surrogate):
    load_params(net := tools.learners.surrogate.module, params)
    accuracy.append(evaluate(net, test.images, test.labels).accuracy)
print("accuracy before and after:", *accuracy)
