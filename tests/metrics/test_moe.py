"""Routing, by a counter and a loop."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_polystep.layers import HardMoE
from lightning_polystep.metrics import DeadExperts, ExpertLoad, RouterMargin


@given(
    sizes=st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=2), min_size=1, max_size=3),
    experts=st.integers(2, 6),
    seed=st.integers(0, 99),
)
def test_equal_a_counter(sizes, experts, seed):
    torch.manual_seed(seed)
    load, dead, margin = ExpertLoad(experts), DeadExperts(experts), RouterMargin()
    counter, leads = Counter(), []
    for size in sizes:
        scores = torch.randn(*size, experts)
        load.update(scores.argmax(-1))
        dead.update(scores.argmax(-1))
        margin.update(scores)
        for row in scores.reshape(-1, experts).tolist():
            second, first = sorted(row)[-2:]
            counter[row.index(first)] += 1
            leads.append(first - second)
    total, value = sum(counter.values()), load.compute()
    shares = [counter[expert] / total for expert in range(experts)]
    assert value["share"].tolist() == pytest.approx(shares, rel=1e-6)
    assert float(value["imbalance"]) == pytest.approx(max(shares) / (sum(shares) / experts), rel=1e-6)
    entropy = -sum(share * math.log(share) for share in shares if share) / math.log(experts)
    assert float(value["entropy"]) == pytest.approx(entropy, abs=1e-6)
    assert float(dead.compute()) == experts - len(counter)
    assert float(margin.compute()) == pytest.approx(sum(leads) / len(leads), rel=1e-5)


def test_agree_with_what_the_layer_reports():
    layer = HardMoE([nn.Linear(3, 2) for _ in range(4)], router=3, return_routing=True)
    load, margin, x = ExpertLoad(4), RouterMargin(), torch.randn(30, 3)
    routing = layer(x).routing
    load.update(routing.route)
    margin.update(layer.router(x))
    assert load.compute()["share"].tolist() == pytest.approx((routing.load / 30).tolist())
    assert float(margin.compute()) == pytest.approx(float(routing.margin.mean()))


def test_even_and_collapsed_loads():
    even, collapsed = ExpertLoad(4), ExpertLoad(4)
    even.update(torch.arange(8) % 4)
    collapsed.update(torch.zeros(8, dtype=torch.long))
    assert [float(even.compute()[name]) for name in ("imbalance", "entropy")] == [1.0, 1.0]
    assert [float(collapsed.compute()[name]) for name in ("imbalance", "entropy")] == [4.0, 0.0]


def test_masked_experts_have_no_margin():
    margin = RouterMargin()
    margin.update(torch.tensor([[1.0, -torch.inf], [3.0, 1.0], [-torch.inf, -torch.inf]]))
    assert float(margin.compute()) == 2.0


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^ExpertLoad: route must be 0 to 2, got 0 to 3[.]$"):
        ExpertLoad(3).update(torch.tensor([0, 3]))
    with pytest.raises(TypeError, match=r"^DeadExperts: route must be integers, got torch.float32[.]$"):
        DeadExperts(3).update(torch.ones(2))
    with pytest.raises(ValueError, match=r"^ExpertLoad: num_experts must be a whole number of at least 1, got 0[.]$"):
        ExpertLoad(0)
    with pytest.raises(ValueError, match=r"^RouterMargin: scores must be .*, got \(2, 1\)[.]$"):
        RouterMargin().update(torch.ones(2, 1))
