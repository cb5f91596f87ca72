"""Laws of what speed is measured from: it computes what the engine computes, whichever way."""

import pytest
import toy
from reference import distill_in_one_pass, distill_plainly

from feddgm_flwr.core.algorithm import distill_job
from feddgm_flwr.core.distillation.distill import distill_client


@pytest.mark.parametrize("way", [distill_plainly, distill_in_one_pass])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
@pytest.mark.parametrize(("batch", "augment"), [(0, ""), (3, "crop")])
def test_autograd_descends_as_the_engine_does(way, optimizer, batch, augment):
    server = toy.server(
        distill__gradient="detached",
        distill__optimizer=optimizer,
        distill__iterations=4,
        distill__student_batch=batch,
        distill__augment=augment,
    )
    state, updates = toy.federation(server)
    job, bench = distill_job(updates[0], state, server.shop), server.shop.bench
    report = distill_client(job, bench).report
    losses = way(job, bench, 4)
    assert losses[0] == pytest.approx(report.first_loss, rel=1e-5)
    assert losses[-1] == pytest.approx(report.last_loss, rel=1e-3)
    assert losses[-1] != losses[0]
