"""Spikes of all steps at once: the bits of the functional layer, on every implementation and under vmap."""

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given

from lightning_polystep.functional import lif
from lightning_polystep.kernels import lif_spikes
from tests.kernels.cases import NEURONS, run, values

NAME = "lif_spikes"
REST = ("zero", False, "ge")


def case(count, steps, neuron, dtype=torch.float64, *, constant=False, each=True, dyadic=False):
    size = count if each else 1
    current = values(1 if constant else steps, count, dtype=dtype, dyadic=dyadic)
    beta = torch.randint(0, 9, (size,)).to(dtype) / 8 if dyadic else torch.rand(size, dtype=dtype)
    threshold = values(size, dtype=dtype, dyadic=dyadic, mean=0.5)
    return current, beta, threshold, steps, *neuron


CASES = st.builds(
    case,
    count=st.sampled_from((1, 2, 16, 17, 40)),
    steps=st.sampled_from((1, 2, 9)),
    neuron=st.sampled_from(NEURONS),
    dtype=st.sampled_from((torch.float32, torch.float64)),
    constant=st.booleans(),
    each=st.booleans(),
    dyadic=st.booleans(),
)


@given(st.integers(0, 2**32), st.data())
def test_cpu_equals_the_reference_bit_for_bit(seed, data):
    torch.manual_seed(seed)
    arguments = data.draw(CASES)
    assert torch.equal(run("cpu", NAME, arguments), run("reference", NAME, arguments))


@pytest.mark.parametrize("neuron", NEURONS)
def test_equals_the_layer_that_records_a_gradient(neuron):
    """With autograd the layer writes its steps out; thresholds may be negative and a current may vary."""
    torch.manual_seed(0)
    reset_mechanism, reset_delay, spike_on = neuron
    options = {"reset_mechanism": reset_mechanism, "reset_delay": reset_delay, "spike_on": spike_on}
    current, beta, threshold = torch.randn(7, 3, 4, 5), torch.rand(4, 1), torch.randn(5)
    expected = lif(current, beta, threshold, **options)
    assert 0 < expected.mean() < 1
    with torch.no_grad():
        assert torch.equal(lif(current, beta, threshold, **options), expected)
        assert torch.equal(
            lif(current[0], beta, 1.0, num_steps=7, **options), lif(current[:1].expand(7, 3, 4, 5), beta, **options)
        )


@pytest.mark.parametrize("dims", [(1, None, None), (None, 0, None), (0, 1, 0), (2, None, 1)])
def test_candidates_side_by_side_spike_as_they_do_alone(dims):
    torch.manual_seed(0)
    shapes = ((6, 9), (9,), (9,))
    arguments = [torch.rand(shape) for shape in shapes]
    for place, where in enumerate(dims):
        if where is not None:
            arguments[place] = torch.rand(4, *shapes[place]).movedim(0, where)
    together = torch.vmap(lambda *some: lif_spikes(*some, 6, *REST), in_dims=dims)(*arguments)
    for number in range(4):
        alone = [a if w is None else a.select(w, number) for a, w in zip(arguments, dims, strict=True)]
        assert torch.equal(together[number], lif_spikes(*alone, 6, *REST))


def test_a_constant_for_all_neurons_serves_under_vmap():
    current, one = torch.rand(4, 6, 9), torch.ones(1)
    together = torch.vmap(lambda some: lif_spikes(some, one / 2, one, 6, *REST))(current)
    assert torch.equal(together[2], lif_spikes(current[2], one / 2, one, 6, *REST))


def test_the_number_of_threads_changes_no_bit():
    arguments = case(1000, 8, REST, torch.float32)
    torch.set_num_threads(1)
    one = lif_spikes(*arguments)
    torch.set_num_threads(2)
    assert torch.equal(lif_spikes(*arguments), one)


def test_the_operator_is_declared_correctly():
    torch.library.opcheck(lif_spikes, case(20, 5, REST))


@pytest.mark.parametrize(
    ("place", "wrong", "message"),
    [
        (0, torch.ones(3, 4), r"current must be \(5 or 1, M\)"),
        (0, torch.ones(5, 4, dtype=torch.int64), "current must be float32 or float64"),
        (1, torch.ones(3), "beta must have shape"),
        (2, torch.ones(4, dtype=torch.float64), "threshold must be torch.float32"),
        (3, 0, "num_steps must be at least 1"),
        (4, "nil", "reset_mechanism must be"),
        (6, "eq", "spike_on must be"),
    ],
)
def test_wrong_arguments_are_refused(place, wrong, message):
    arguments = [*case(4, 5, REST, torch.float32)]
    arguments[place] = wrong
    with pytest.raises((TypeError, ValueError), match=message):
        lif_spikes(*arguments)
