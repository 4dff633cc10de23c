"""Costs by outcomes: against brute force, against whole networks, and bit for bit against themselves."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import lif
from lightning_polystep.kernels import lif_outcome_costs
from tests.kernels.cases import LOSSES, NEURONS, Sizes, case, hidden_neurons, network_losses, readout_case, run, values

NAME = "lif_outcome_costs"
SIZES = st.builds(
    Sizes,
    samples=st.sampled_from((1, 2, 5, 67)),  # more than the block of samples that is summed in float32
    steps=st.sampled_from((1, 2, 8)),
    classes=st.sampled_from((1, 2, 4, 16, 19)),
    candidates=st.sampled_from((1, 2, 17)),
    units=st.sampled_from((1, 3, 10)),
)
ANY = {"loss": st.sampled_from(LOSSES), "neuron": st.sampled_from(NEURONS), "seed": st.integers(0, 2**32)}


@given(sizes=SIZES, dense=st.booleans(), dtype=st.sampled_from((torch.float32, torch.float64)), **ANY)
def test_cpu_equals_the_reference(sizes, dense, dtype, loss, neuron, seed):
    torch.manual_seed(seed)
    arguments = case(NAME, sizes, loss, neuron, dtype, dense=dense)
    found, expected = run("cpu", NAME, arguments), run("reference", NAME, arguments)
    # A spike that differed would change a cost by 1e-3 or more.
    tolerance = 1e-5 * sizes.samples**0.5 if dtype == torch.float32 else 1e-11
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=tolerance)


@given(
    sizes=SIZES.map(lambda sizes: sizes._replace(classes={1: 1, 2: 2, 4: 4, 16: 16, 19: 32}[sizes.classes])),
    neuron=ANY["neuron"],
    seed=ANY["seed"],
    dtype=st.sampled_from((torch.float32, torch.float64)),
)
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, neuron, seed, dtype):
    torch.manual_seed(seed)
    arguments = case(NAME, sizes, "mse_rate", neuron, dtype, dyadic=True)
    assert torch.equal(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_equals_networks_that_run_candidate_by_candidate(loss, neuron):
    sizes, dtype = Sizes(), torch.float64
    beta, threshold, options, (boundaries, trains) = hidden_neurons(sizes, neuron, dtype)
    _, *tail = readout_case(sizes, loss, neuron, dtype)
    current = values(sizes.samples, sizes.units, dtype=dtype)
    shifts = values(sizes.samples, sizes.candidates, dtype=dtype)
    weight = values(sizes.classes, sizes.units, dtype=dtype)

    def losses(hidden_current):
        spikes = lif(hidden_current, beta, threshold, num_steps=sizes.steps, **options)
        return network_losses(spikes @ weight.T, *tail)

    expected = torch.empty(sizes.units, sizes.candidates, dtype=torch.float64)
    for u in range(sizes.units):
        for v in range(sizes.candidates):
            moved = current.clone()
            moved[:, u] += shifts[:, v]
            expected[u, v] = (losses(moved) - losses(current)).sum()
    spikes = lif(current, beta, threshold, num_steps=sizes.steps, **options)
    currents = (spikes @ weight.T).movedim(0, 1)
    found = lif_outcome_costs(current, shifts, boundaries, trains, weight, currents, *tail)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start", [-100.0, 100.0], ids=["silent", "saturated"])
def test_units_that_cannot_change_cost_nothing(start):
    _, *rest = case(NAME, Sizes(), "cross_entropy_count", ("zero", False, "ge"))
    arguments = (torch.full((5, 3), start, dtype=torch.float64), *rest)
    assert torch.equal(run("cpu", NAME, arguments), torch.zeros(3, 6, dtype=torch.float64))


def test_candidates_that_all_skip_outcomes_next_to_the_incumbent():
    for offset in (-2.0, 2.0):
        current, shifts, *rest = case(NAME, Sizes(), "cross_entropy_count", ("zero", False, "ge"))
        arguments = (current - offset / 2, shifts * 0.1 + offset, *rest)
        torch.testing.assert_close(run("cpu", NAME, arguments), run("reference", NAME, arguments))


def test_equal_samples_and_equal_candidates_cost_alike():
    current, shifts, boundaries, trains, weight, currents, beta, threshold, target, *options = case(
        NAME, Sizes(), "cross_entropy_count", ("zero", False, "ge")
    )
    shifts[:, 1] = shifts[:, 0]
    rest = (boundaries, trains, weight)
    once = lif_outcome_costs(current, shifts, *rest, currents, beta, threshold, target, *options)
    assert torch.equal(once[:, 0], once[:, 1])
    twice = lif_outcome_costs(
        current.repeat(2, 1), shifts.repeat(2, 1), *rest, currents.repeat(2, 1, 1), beta, threshold, target.repeat(2),
        *options,
    )  # fmt: skip
    torch.testing.assert_close(twice, 2 * once)


def test_one_dictionary_serves_all_units():
    current, shifts, boundaries, trains, *rest = case(NAME, Sizes(), "mse_rate", ("subtract", False, "ge"))
    shared = lif_outcome_costs(current, shifts, boundaries[:1], trains[:1], *rest)
    repeated = lif_outcome_costs(current, shifts, boundaries[:1].repeat(3, 1), trains[:1].repeat(3, 1, 1), *rest)
    assert torch.equal(shared, repeated)


def test_the_number_of_threads_changes_no_bit():
    arguments = case(NAME, Sizes(200, 8, 10, 40, 37), "cross_entropy_count", ("zero", False, "ge"), torch.float32)
    torch.set_num_threads(1)
    one = lif_outcome_costs(*arguments)
    torch.set_num_threads(2)
    assert lif_outcome_costs(*arguments).numpy().tobytes() == one.numpy().tobytes()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_operator_is_declared_correctly(loss):
    torch.library.opcheck(lif_outcome_costs, case(NAME, Sizes(), loss, ("zero", False, "ge")))


def test_wrong_arguments_are_refused():
    current, shifts, boundaries, *rest = case(NAME, Sizes(), "mse_rate", ("zero", False, "ge"))
    with pytest.raises(TypeError, match="shifts must be"):
        lif_outcome_costs(current, shifts.float(), boundaries, *rest)
    with pytest.raises(ValueError, match="ascend"):
        lif_outcome_costs(current, shifts, boundaries.flip(1), *rest)
    with pytest.raises(ValueError, match="1 or all 3 neurons"):
        lif_outcome_costs(current, shifts, boundaries[:2], *rest)
