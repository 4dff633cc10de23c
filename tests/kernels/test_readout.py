"""The readout that the kernels share: its losses against torch's, its refusals, its state in compiled code."""

import pytest
import torch

from lightning_polystep.functional import lif
from lightning_polystep.kernels.readout import Readout, check_readout, readout_losses
from lightning_polystep.kernels.readout.cpu import run_incumbent
from tests.kernels.cases import LOSSES, NEURONS, Sizes, network_losses, readout_case


@pytest.mark.parametrize("dense", [False, True], ids=["classes", "dense"])
@pytest.mark.parametrize("loss", LOSSES)
def test_losses_are_those_of_torch(loss, dense):
    readout = Readout(*readout_case(Sizes(), loss, ("zero", False, "ge"), torch.float64, dense=dense))
    expected = network_losses(readout.currents.movedim(1, 0), *readout[1:])
    torch.testing.assert_close(readout_losses(readout, readout.currents), expected)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("neuron", NEURONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_compiled_neurons_do_what_the_functional_ones_do(neuron, loss, dtype):
    readout = Readout(*readout_case(Sizes(classes=19), loss, neuron, dtype))
    mechanism, delay, spike_on = neuron
    spikes, membrane = lif(
        readout.currents.movedim(1, 0),
        readout.beta,
        readout.threshold,
        reset_mechanism=mechanism,
        reset_delay=delay,
        spike_on=spike_on,
        return_membrane=True,
    )
    incumbent = run_incumbent(readout)
    assert torch.equal(torch.from_numpy(incumbent.membranes)[:, 1:, :19], membrane.movedim(0, 1))
    assert torch.equal(torch.from_numpy(incumbent.counts)[:, 1:, :19], spikes.cumsum(0).movedim(0, 1).int())
    expected = readout_losses(readout, readout.currents)
    torch.testing.assert_close(torch.from_numpy(incumbent.losses), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"loss": "hinge"}, ValueError, "loss must be one of"),
        ({"reset_mechanism": "soft"}, ValueError, "reset_mechanism"),
        ({"target": torch.tensor([0, 1, 2, 3, 4])}, ValueError, "outside 0 to 3"),
        ({"beta": torch.ones(4)}, TypeError, "beta must be torch.float64"),
        ({"threshold": torch.ones(3).double()}, ValueError, "threshold must have shape"),
        ({"loss": "mse_rate"}, ValueError, "label_smoothing"),
    ],
)
def test_wrong_arguments_are_refused(change, error, message):
    readout = Readout(*readout_case(Sizes(), "cross_entropy_count", ("zero", False, "ge"), torch.float64))
    check_readout(readout, "op")
    with pytest.raises(error, match=message):
        check_readout(readout._replace(**change), "op")
