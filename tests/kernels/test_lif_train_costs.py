"""Costs of hidden layers on currents that change over time: against brute force, whole networks and other operators."""

from importlib import import_module

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import lif
from lightning_polystep.kernels import lif_outcome_costs, lif_train_costs
from lightning_polystep.kernels.lif_train_costs.reference import Hidden
from tests.kernels.cases import (
    LOSSES,
    NEURONS,
    Sizes,
    case,
    hidden_neurons,
    network_losses,
    readout_case,
    run,
    train_case,
)

NAME = "lif_train_costs"
SIZES = st.builds(
    Sizes,
    samples=st.sampled_from((1, 2, 5)),
    steps=st.sampled_from((1, 2, 8)),
    classes=st.sampled_from((1, 2, 4, 16, 32)),
    candidates=st.sampled_from((1, 2, 17)),
    units=st.sampled_from((1, 3, 10)),
    hidden=st.sampled_from(((), (1,), (5,), (3, 4), (65, 2))),
)
# Those of the hidden layers and of the readout.
NEURON_PAIRS = st.tuples(st.sampled_from(NEURONS), st.sampled_from(NEURONS))
ANY = {"neurons": NEURON_PAIRS, "constant": st.booleans(), "seed": st.integers(0, 2**32)}


def arguments_of(sizes, loss, neurons, dtype, dyadic=False, dense=False, constant=False):
    tail = readout_case(sizes, loss, neurons[1], dtype, dyadic, dense)
    return train_case(sizes, neurons[0], dtype, tail, dyadic, constant)


@given(
    sizes=SIZES,
    loss=st.sampled_from(LOSSES),
    dense=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    **ANY,
)
def test_cpu_equals_the_reference(sizes, loss, dense, dtype, neurons, constant, seed):
    torch.manual_seed(seed)
    arguments = arguments_of(sizes, loss, neurons, dtype, dense=dense, constant=constant)
    found, expected = run("cpu", NAME, arguments), run("reference", NAME, arguments)
    # Even from float32: both round the currents of a candidate in the same order.
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@given(sizes=SIZES, dtype=st.sampled_from((torch.float32, torch.float64)), **ANY)
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, dtype, neurons, constant, seed):
    torch.manual_seed(seed)
    arguments = arguments_of(sizes, "mse_rate", neurons, dtype, dyadic=True, constant=constant)
    assert torch.equal(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@pytest.mark.parametrize("steps", [64, 150])
def test_long_trains(steps):
    arguments = case(NAME, Sizes(2, steps, 3, 20, 3, (4,)), "cross_entropy_count", ("zero", False, "ge"))
    found, expected = run("cpu", NAME, arguments), run("reference", NAME, arguments)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


def spiking(sizes, neuron, constant=False):
    """A network (shifts, layers, weights) and its function from currents of the first layer to those of the readout."""
    shifts, (first, *_), betas, thresholds, weights, *_ = train_case(
        sizes, neuron, torch.float64, (), constant=constant
    )
    mechanism, delay, spike_on = neuron
    options = {"reset_mechanism": mechanism, "reset_delay": delay, "spike_on": spike_on}

    def currents_of_layers(currents):
        layers = [currents]
        for beta, threshold, weight in zip(betas, thresholds, weights, strict=True):
            spikes = lif(layers[-1].expand(-1, sizes.steps, -1).movedim(1, 0), beta, threshold, **options)
            layers.append((spikes @ weight.T).movedim(0, 1))
        return layers

    return shifts, first, betas, thresholds, weights, currents_of_layers


@pytest.mark.parametrize("hidden", [(), (5,), (4, 6)], ids=["1 layer", "2 layers", "3 layers"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_equals_networks_that_run_candidate_by_candidate(neuron, loss, hidden):
    sizes = Sizes(hidden=hidden)
    shifts, first, betas, thresholds, weights, currents_of_layers = spiking(sizes, neuron)
    _, *tail = readout_case(sizes, loss, NEURONS[-1], torch.float64)

    def losses(currents):
        return network_losses(currents_of_layers(currents)[-1].movedim(1, 0), *tail)

    expected = torch.empty(sizes.units, sizes.candidates, dtype=torch.float64)
    for u in range(sizes.units):
        for v in range(sizes.candidates):
            moved = first.clone()
            moved[..., u] += shifts[..., v]
            expected[u, v] = (losses(moved) - losses(first)).sum()
    *layers, currents = currents_of_layers(first)
    found = lif_train_costs(shifts, layers, betas, thresholds, weights, currents, *tail, *neuron)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_networks_of_these_tests_are_not_silent():
    sizes = Sizes(hidden=(4, 6))
    shifts, first, betas, thresholds, weights, currents_of_layers = spiking(sizes, NEURONS[0])
    *layers, currents = currents_of_layers(first)
    _, *tail = readout_case(sizes, "cross_entropy_membrane", NEURONS[0], torch.float64)
    costs = lif_train_costs(shifts, layers, betas, thresholds, weights, currents, *tail, *NEURONS[0])
    assert (costs != 0).double().mean() > 0.5


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_equals_the_outcomes_of_a_constant_current(neuron, loss):
    sizes = Sizes(candidates=33)
    beta, threshold, _, (boundaries, trains) = hidden_neurons(sizes, neuron, torch.float64)
    tail = readout_case(sizes, loss, neuron, torch.float64)
    shifts, [current], _, _, [weight] = train_case(sizes, neuron, torch.float64, (), constant=True)[:5]
    expected = lif_outcome_costs(current[:, 0], shifts[:, 0], boundaries, trains, weight, *tail)
    found = lif_train_costs(shifts, [current], [beta], [threshold], [weight], *tail, *neuron)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


def test_a_constant_is_the_same_number_at_every_step():
    shifts, [first, *behind], *rest = arguments_of(
        Sizes(hidden=(4,)), "cross_entropy_count", (NEURONS[0], NEURONS[0]), torch.float32, constant=True
    )
    constant = lif_train_costs(shifts, [first, *behind], *rest)
    first, long = first.repeat(1, 8, 1), shifts.repeat(1, 8, 1)
    assert torch.equal(lif_train_costs(long, [first, *behind], *rest), constant)
    assert torch.equal(lif_train_costs(shifts, [first, *behind], *rest), constant)


@pytest.mark.parametrize("start", [-100.0, 100.0], ids=["silent", "saturated"])
def test_units_that_cannot_change_cost_nothing(start):
    shifts, [first, *behind], *rest = case(NAME, Sizes(hidden=(4,)), "cross_entropy_count", ("zero", False, "ge"))
    costs = run("cpu", NAME, (shifts, [torch.full_like(first, start), *behind], *rest))
    assert torch.equal(costs, torch.zeros(3, 6, dtype=torch.float64))


@pytest.mark.parametrize(("units", "candidates"), [(0, 6), (3, 0)])
def test_nothing_to_score(units, candidates):
    arguments = case(NAME, Sizes(units=units, candidates=candidates, hidden=(4,)), "mse_rate", ("zero", False, "ge"))
    assert run("cpu", NAME, arguments).shape == (units, candidates)


def test_the_number_of_threads_changes_no_bit():
    sizes = Sizes(50, 8, 10, 40, 37, (20, 12))
    arguments = case(NAME, sizes, "cross_entropy_count", ("zero", False, "ge"), torch.float32)
    torch.set_num_threads(1)
    one = lif_train_costs(*arguments)
    torch.set_num_threads(2)
    assert lif_train_costs(*arguments).numpy().tobytes() == one.numpy().tobytes()


@pytest.mark.parametrize("hidden", [(), (4, 2)])
def test_the_operator_is_declared_correctly(hidden):
    torch.library.opcheck(lif_train_costs, case(NAME, Sizes(hidden=hidden), "mse_rate", ("zero", False, "ge")))


def test_more_classes_than_a_program_on_a_gpu_holds_are_refused():
    pytest.importorskip("triton")
    kernel = import_module("lightning_polystep.kernels.lif_train_costs.triton")
    shifts, *lists = (arguments := case(NAME, Sizes(1, 1, 5000), "mse_rate", NEURONS[0]))[:5]
    readout = arguments[5:14]
    with pytest.raises(ValueError, match=r"at most 4096 classes, got 5000; set POLYSTEP_KERNELS=reference"):
        kernel.lif_train_costs(shifts, Hidden(*map(tuple, lists), *NEURONS[0]), *readout)


def test_wrong_arguments_are_refused():
    shifts, currents, betas, *rest = case(NAME, Sizes(hidden=(4,)), "mse_rate", ("zero", False, "ge"))
    with pytest.raises(ValueError, match="shifts must have shape"):
        lif_train_costs(shifts[:, :2], currents, betas, *rest)
    with pytest.raises(ValueError, match="one tensor per hidden layer"):
        lif_train_costs(shifts, currents, betas[:1], *rest)
    with pytest.raises(TypeError, match=r"hidden_betas\[1\] must be"):
        lif_train_costs(shifts, currents, [betas[0], betas[1].float()], *rest)
    with pytest.raises(ValueError, match=r"hidden_currents\[1\] must have shape"):
        lif_train_costs(shifts, [currents[0], currents[1][:, :1]], betas, *rest)
    with pytest.raises(ValueError, match="hidden: reset_mechanism"):
        lif_train_costs(shifts, currents, betas, *rest[:-3], "soft", False, "ge")
