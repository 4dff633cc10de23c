"""The dictionary of outcomes against forward passes, on the numbers next to each boundary."""

import pytest
import torch

from lightning_polystep.functional import lif
from lightning_polystep.kernels import lif_outcome_dictionary
from tests.kernels.cases import NEURONS


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("neuron", NEURONS)
def test_the_table_is_what_a_forward_pass_does(neuron, dtype):
    mechanism, delay, spike_on = neuron
    options = {"reset_mechanism": mechanism, "reset_delay": delay, "spike_on": spike_on}
    beta, threshold = torch.tensor([0.0, 0.5, 0.95, 1.0], dtype=dtype), torch.tensor([1.0, 0.5, 1.0, 0.3], dtype=dtype)
    boundaries, trains = lif_outcome_dictionary(beta, threshold, 12, dtype=dtype, **options)
    below = torch.nextafter(boundaries, torch.tensor(-torch.inf, dtype=dtype))
    random = torch.randn(4, 2000, dtype=dtype)
    currents = torch.cat([boundaries, below, random], 1).clamp(-1e18, 1e18)
    expected = lif(currents.T, beta, threshold, num_steps=12, **options).movedim(0, 2).movedim(0, 1)
    for neuron_trains, current, edges, spikes in zip(trains, currents, boundaries, expected, strict=True):
        outcome = torch.bucketize(current, edges, right=True)
        assert torch.equal(neuron_trains[outcome].to(dtype), spikes)


@pytest.mark.parametrize("mechanism", ["zero", "none"])
def test_long_runs_have_at_most_one_outcome_per_step_and_silence(mechanism):
    boundaries, trains = lif_outcome_dictionary(0.95, 1.0, 400, reset_mechanism=mechanism)
    assert boundaries.shape[1] <= 400
    assert trains.shape == (1, boundaries.shape[1] + 1, 400)
    assert trains[0, 0].sum() == 0
    assert trains[0, -1].sum() == 400


def test_subtraction_has_more():
    boundaries, trains = lif_outcome_dictionary(0.95, 1.0, 15, reset_mechanism="subtract")
    assert boundaries.shape[1] > 15
    assert len(trains[0].unique(dim=0)) == boundaries.shape[1] + 1


def test_a_threshold_below_every_current_leaves_one_outcome():
    boundaries, trains = lif_outcome_dictionary(0.5, 1.0, 3, lowest=-1.0, highest=0.0)
    assert boundaries.shape == (1, 0)
    assert trains.tolist() == [[[0, 0, 0]]]


def test_other_dtypes_are_refused():
    with pytest.raises(TypeError, match="float32 or float64"):
        lif_outcome_dictionary(0.5, 1.0, 3, dtype=torch.float16)
