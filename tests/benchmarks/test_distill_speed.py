"""Laws of the speed benchmark: every way has its operations counted, and a row of the table."""

import distill_speed
import pytest
import toy
from distill_speed import KEPT, ONE_PASS, PUBLISHED, Case, Measured, measure_floor, table

from feddgm_flwr.core.algorithm import distill_job


@pytest.fixture
def case():
    server = toy.server(distill__gradient="detached", distill__memory_budget_mb=1)
    state, updates = toy.federation(server)
    return Case("toy", server.shop.bench, distill_job(updates[0], state, server.shop), 30)


@pytest.fixture
def floor(case, monkeypatch):
    """Count, but do not measure the machine."""
    for rate in ("matmul_gflops", "convolution_gflops"):
        monkeypatch.setattr(distill_speed, rate, lambda threads, device: 1.0)
    return measure_floor(case, (1,))


def test_one_pass_does_less_than_the_published_way_and_more_than_the_closed_form(floor):
    flops = floor.flops
    assert flops[PUBLISHED] > flops[ONE_PASS] > flops[KEPT] > 0
    assert flops[""] >= flops[KEPT]


def test_each_way_is_compared_with_one_pass_on_as_many_threads(case, floor):
    ways = [
        Measured(PUBLISHED, 1, 1, 60.0, 1, 0.5),
        Measured(ONE_PASS, 1, 1, 30.0, 1, 0.5),
        Measured(f"serial, detached{KEPT}", 1, 1, 12.0, 1, 0.5),
    ]
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table(case, ways, floor)]
    assert [row[3:6] for row in cells] == [
        ["60.0", "1.00", "0.50"],
        ["30.0", "2.00", "1.00"],
        ["12.0", "5.00", "2.50"],
    ]
