"""The sampled vertex: one-hot, with the softmax's probabilities, and the same draw wherever it is asked for again."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_polystep.randomness import generator
from lightning_polystep.transport import Sample, softmax_transport
from tests.helpers.boring import Boring, loader, polystep, spiking
from tests.helpers.ranks import alike, fit

F64 = torch.float64


def draw(costs, epsilon=1.0, seed=0, step=0, role="transport/w"):
    return Sample().weigh(costs, epsilon, generator(seed, step, role)).weights


@given(st.integers(0, 1000), st.floats(0.1, 10))
def test_one_vertex_takes_all(seed, epsilon):
    costs = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(seed), dtype=F64)
    weights = draw(costs, epsilon, seed)
    assert (weights.max(-1).values == 1).all()
    assert (weights.sum(-1) == 1).all()


@pytest.mark.parametrize("epsilon", [0.3, 1.0, 5.0])
def test_vertices_are_drawn_as_often_as_the_softmax_weighs_them(epsilon):
    costs = torch.tensor([0.0, 0.5, 1.0, math.inf, -0.5], dtype=F64)
    count = 20_000
    shares = draw(costs.expand(count, 1, 5), epsilon).mean((0, 1))
    expected = softmax_transport(costs, epsilon)
    slack = 5 * (expected * (1 - expected) / count).sqrt()
    assert ((shares - expected).abs() <= slack).all()
    assert shares[3] == 0


def test_particles_draw_independently():
    weights = draw(torch.zeros(2000, 2, 2, dtype=F64))
    both = weights[:, 0].T @ weights[:, 1] / 2000
    torch.testing.assert_close(both, torch.full((2, 2), 0.25, dtype=F64), rtol=0, atol=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_what_is_impossible_is_never_drawn(dtype):
    """Costs of which most are infinite, or whose weight is 0 to rounding."""
    costs = torch.full((50_000, 1, 7), math.inf, dtype=dtype)
    costs[..., 2], costs[..., 4], costs[..., 5] = 0.0, 0.1, 1e5
    weights = draw(costs)
    assert set(weights.argmax(-1).flatten().tolist()) == {2, 4}


def test_a_cold_draw_takes_the_best():
    costs = torch.randn(10, 2, 6, dtype=F64)
    assert torch.equal(draw(costs, 1e-6).argmax(-1), costs.argmin(-1))


def test_the_draw_is_a_function_of_seed_step_and_block():
    costs = torch.randn(40, 1, 6, dtype=F64)
    first = draw(costs, 5.0)
    torch.rand(3)
    assert torch.equal(draw(costs, 5.0), first)
    for other in ({"seed": 1}, {"step": 1}, {"role": "transport/v"}):
        assert not torch.equal(draw(costs, 5.0, **other), first)


def test_global_generators_are_left_alone():
    before = torch.get_rng_state()
    draw(torch.randn(3, 1, 4, generator=torch.Generator().manual_seed(0), dtype=F64))
    assert torch.equal(torch.get_rng_state(), before)


def test_without_a_generator_it_says_so():
    with pytest.raises(ValueError, match=r"Sample.weigh\(\) draws: give it a generator"):
        Sample().weigh(torch.zeros(1, 1, 2), 1.0)


def drawing(module):
    return polystep(module, transport="sample", lr=0.01)


def drawing_task():
    """A spiking network on the fast tiers, whose particles go to drawn vertices."""
    return spiking(Boring, torch.float32)(drawing), loader(4, shuffle=True), {}


@pytest.mark.distributed
def test_two_processes_draw_what_one_draws(tmp_path):
    one, two = (alike(fit(drawing_task, ranks, tmp_path)) for ranks in (1, 2))
    assert one == two
