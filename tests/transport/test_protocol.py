"""What every transport promises: rows sum to 1, what is not finite never wins, and no gradient."""

import copy
import math
import pickle
from dataclasses import FrozenInstanceError, fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from lightning_polystep.transport import TRANSPORTS, KLRelaxed, Sample, Sinkhorn, Softmax, transport_of
from lightning_polystep.transport.protocol import finite_somewhere

F64 = torch.float64
ALL = [Softmax(), Sinkhorn(), KLRelaxed(tau=0.0), KLRelaxed(tau=3.0), KLRelaxed(tau=math.inf), Sample()]
SHAPES = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(2, 6))
# About a fourth of them are not finite.
COSTS = arrays(np.float64, SHAPES, elements=st.one_of(*[st.floats(-3, 3)] * 3, st.just(math.inf)))
every_transport = pytest.mark.parametrize("transport", ALL, ids=str)


def weigh(transport, costs, epsilon=1.0, seed=0):
    return transport.weigh(torch.as_tensor(costs, dtype=F64), epsilon, torch.Generator().manual_seed(seed))


@every_transport
@given(costs=COSTS, epsilon=st.floats(0.2, 10))
def test_rows_sum_to_one_and_what_is_not_finite_weighs_nothing(transport, costs, epsilon):
    if hasattr(transport, "iterations"):
        transport = replace(transport, iterations=50)  # rows sum to 1 wherever it ends
    costs = torch.from_numpy(costs)
    weights, error, _ = weigh(transport, costs, epsilon)
    assert weights.shape == costs.shape
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(costs.shape[:-1], dtype=F64))
    known = finite_somewhere(costs).expand_as(costs)
    assert (weights[~torch.isfinite(costs) & known] == 0).all()
    assert (weights[~known] == 1 / costs.shape[-1]).all()
    assert error.shape == ()
    assert 0 <= float(error) <= 2 + 1e-9


@every_transport
def test_a_particle_that_knows_nothing_does_not_disturb_the_others(transport):
    costs = torch.randn(5, 1, 4, dtype=F64)
    unknown = torch.full((1, 1, 4), math.inf, dtype=F64)
    with_it = weigh(transport, torch.cat([costs, unknown]))
    torch.testing.assert_close(with_it.weights[:5], weigh(transport, costs).weights)
    torch.testing.assert_close(with_it.marginal_error, weigh(transport, costs).marginal_error)


@every_transport
def test_nothing_is_differentiated(transport):
    costs = torch.randn(3, 2, 4, dtype=F64, requires_grad=True)
    before = costs.detach().clone()
    weights, error, _ = weigh(transport, costs)
    assert not weights.requires_grad
    assert not error.requires_grad
    assert torch.equal(costs, before)
    assert torch.is_grad_enabled()


@every_transport
@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_the_dtype_is_kept(transport, dtype):
    weights, error, _ = transport.weigh(torch.randn(3, 2, 4).to(dtype), 1.0, torch.Generator().manual_seed(0))
    assert weights.dtype == error.dtype == dtype


@every_transport
def test_places_of_a_row_are_problems_of_their_own(transport):
    """But for the draw, which is one for all particles."""
    costs = torch.randn(6, 3, 4, dtype=F64)
    together = weigh(transport, costs).weights
    for place in range(0 if transport.draws else 3):
        alone = weigh(transport, costs[:, [place]]).weights
        torch.testing.assert_close(together[:, [place]], alone, rtol=1e-5, atol=1e-6)


@every_transport
def test_the_order_of_the_rows_does_not_matter(transport):
    costs, order = torch.randn(6, 2, 4, dtype=F64), torch.randperm(6)
    if not transport.draws:
        weights = weigh(transport, costs).weights
        torch.testing.assert_close(weigh(transport, costs[order]).weights, weights[order], rtol=1e-9, atol=1e-12)


@every_transport
def test_they_are_values_that_say_what_they_are(transport):
    copied = pickle.loads(pickle.dumps(transport))
    assert copied == transport == copy.deepcopy(transport)
    assert type(transport).__name__ in repr(transport)
    for field in fields(transport):
        with pytest.raises(FrozenInstanceError):
            setattr(transport, field.name, None)


def test_names_stand_for_default_settings():
    assert {name: type(transport) for name, transport in TRANSPORTS.items()} == {
        "softmax": Softmax,
        "sinkhorn": Sinkhorn,
        "kl": KLRelaxed,
        "sample": Sample,
    }
    assert transport_of("kl") == KLRelaxed()
    chosen = KLRelaxed(tau=7.0)
    assert transport_of(chosen) is chosen


def test_who_needs_rows_and_who_draws():
    assert [transport.least_rows for transport in ALL] == [1, 2, 1, 1, 2, 1]
    assert [transport.draws for transport in ALL] == [False] * 5 + [True]
