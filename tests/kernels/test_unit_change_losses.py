"""Loss changes of single values: against brute force, whole networks, and bit for bit against parts of themselves."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import unit_change_losses
from tests.kernels.cases import run, values
from tests.kernels.feedforward_cases import (
    DTYPES,
    LOSSES,
    SIZES,
    Sizes,
    assert_cpu_is_close,
    assert_cpu_is_equal,
    case,
    layers_behind,
    network,
    scores_case,
    torch_losses,
)

NAME = "unit_change_losses"


@given(sizes=SIZES, loss=st.sampled_from(LOSSES), own_tables=st.booleans(), seed=st.integers(0, 2**32))
def test_cpu_equals_the_reference(sizes, loss, own_tables, seed):
    torch.manual_seed(seed)
    assert_cpu_is_close(NAME, sizes, loss, torch.float64, 1e-11, own_tables=own_tables)


@given(sizes=SIZES, dtype=st.sampled_from(DTYPES), own_tables=st.booleans(), seed=st.integers(0, 2**32))
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, dtype, own_tables, seed):
    torch.manual_seed(seed)
    sizes = sizes._replace(behind=sizes.behind[:2], classes=4)
    assert_cpu_is_equal(NAME, sizes, dtype, own_tables=own_tables)


@pytest.mark.parametrize("behind", [(), (5,), (4, 6)], ids=["last", "1 behind", "2 behind"])
@pytest.mark.parametrize("loss", LOSSES)
def test_equals_networks_that_run_again(loss, behind):
    sizes = Sizes(behind=behind)
    layers = layers_behind(sizes, torch.float64)
    _, *tail = scores_case(sizes, loss, torch.float64)
    # The identity stands for the units' own function: a ReLU of numbers that stay positive.
    nothing = torch.empty(1, 0, dtype=torch.float64)
    forward = network((nothing, nothing), layers)
    units = 5 + torch.rand(sizes.samples, sizes.units, dtype=torch.float64)
    changes = values(sizes.samples, sizes.units, dtype=torch.float64)
    _, *hidden, scores = forward(units)
    found = unit_change_losses(changes, hidden, *layers[1:], scores, *tail)
    for unit in range(sizes.units):
        moved = units.clone()
        moved[:, unit] += changes[:, unit]
        expected = torch_losses(forward(moved)[-1], *tail) - torch_losses(scores, *tail)
        torch.testing.assert_close(found[:, unit], expected, rtol=1e-9, atol=1e-9)
    assert found.abs().max() > 0


def test_neither_other_units_nor_threads_change_a_bit():
    sizes = Sizes(40, 10, 1, 17, (20, 12))
    changes, *behind, weights, scores, target, loss, smoothing = case(NAME, sizes, "cross_entropy", torch.float32)
    torch.set_num_threads(1)
    one = unit_change_losses(changes, *behind, weights, scores, target, loss, smoothing)
    torch.set_num_threads(2)
    assert torch.equal(unit_change_losses(changes, *behind, weights, scores, target, loss, smoothing), one)
    some = [weights[0][:, 3:5].contiguous(), *weights[1:]]
    part = unit_change_losses(changes[:, 3:5].contiguous(), *behind, some, scores, target, loss, smoothing)
    assert torch.equal(part, one[:, 3:5])


def test_no_change_costs_nothing():
    changes, *rest = case(NAME, Sizes(behind=(4,)), "cross_entropy")
    costs = run("cpu", NAME, (torch.zeros_like(changes), *rest))
    assert torch.equal(costs, torch.zeros(5, 3, dtype=torch.float64))


@pytest.mark.parametrize("behind", [(), (4, 2)])
def test_the_operator_is_declared_correctly(behind):
    torch.library.opcheck(unit_change_losses, case(NAME, Sizes(behind=behind), "mse"))


def test_wrong_arguments_are_refused():
    changes, *rest = case(NAME, Sizes(behind=(4,)), "mse")
    with pytest.raises(TypeError, match="unit_change_losses: preactivation must be"):
        unit_change_losses(changes.float(), *rest)
    with pytest.raises(ValueError, match="must have shape"):
        unit_change_losses(changes[:2], *rest)
