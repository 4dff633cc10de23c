"""Costs of the readout itself: against brute force, against whole networks, and bit for bit against themselves."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.kernels import lif_direct_costs
from tests.kernels.cases import LOSSES, NEURONS, Sizes, case, network_losses, run

NAME = "lif_direct_costs"
SIZES = st.builds(
    Sizes,
    samples=st.sampled_from((1, 2, 9)),
    steps=st.sampled_from((1, 2, 8)),
    classes=st.sampled_from((1, 2, 4, 16, 19)),
    candidates=st.sampled_from((1, 2, 64, 65)),
)


@given(
    sizes=SIZES,
    loss=st.sampled_from(LOSSES),
    neuron=st.sampled_from(NEURONS),
    dense=st.booleans(),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 2**32),
)
def test_cpu_equals_the_reference(sizes, loss, neuron, dense, dtype, seed):
    torch.manual_seed(seed)
    arguments = case(NAME, sizes, loss, neuron, dtype, dense=dense)
    found, expected = run("cpu", NAME, arguments), run("reference", NAME, arguments)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-11)


@given(
    sizes=SIZES.map(lambda sizes: sizes._replace(classes=sizes.classes // 16 * 13 + sizes.classes % 16)),
    neuron=st.sampled_from(NEURONS),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    seed=st.integers(0, 2**32),
)
def test_cpu_equals_the_reference_bit_for_bit_where_nothing_rounds(sizes, neuron, dtype, seed):
    torch.manual_seed(seed)
    sizes = sizes._replace(classes=max(size for size in (1, 2, 4, 16) if size <= sizes.classes))
    arguments = case(NAME, sizes, "mse_rate", neuron, dtype, dyadic=True)
    assert torch.equal(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("neuron", NEURONS)
def test_equals_networks_that_run_candidate_by_candidate(loss, neuron):
    sizes = Sizes()
    shifts, currents, *tail = case(NAME, sizes, loss, neuron)
    before = network_losses(currents.movedim(1, 0), *tail)
    expected = torch.empty(sizes.classes, sizes.candidates, dtype=torch.float64)
    for c in range(sizes.classes):
        for v in range(sizes.candidates):
            moved = currents.clone()
            moved[..., c] += shifts[..., v]
            expected[c, v] = (network_losses(moved.movedim(1, 0), *tail) - before).sum()
    found = lif_direct_costs(shifts, currents, *tail)
    assert found.abs().max() > 0
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_the_number_of_threads_changes_no_bit():
    arguments = case(NAME, Sizes(50, 8, 10, 130), "cross_entropy_count", ("zero", False, "ge"), torch.float32)
    torch.set_num_threads(1)
    one = lif_direct_costs(*arguments)
    torch.set_num_threads(2)
    assert lif_direct_costs(*arguments).numpy().tobytes() == one.numpy().tobytes()


@pytest.mark.parametrize("loss", LOSSES)
def test_the_operator_is_declared_correctly(loss):
    torch.library.opcheck(lif_direct_costs, case(NAME, Sizes(), loss, ("zero", False, "ge")))


def test_wrong_arguments_are_refused():
    shifts, *rest = case(NAME, Sizes(), "mse_rate", ("zero", False, "ge"))
    with pytest.raises(ValueError, match="shifts must have shape"):
        lif_direct_costs(shifts[:, :2], *rest)
