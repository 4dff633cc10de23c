"""Spikes step by step, by the functional layer itself."""

from typing import cast

from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.lif import lif
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism


def lif_spikes(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    num_steps: int,
    reset_mechanism: str,
    reset_delay: bool,
    spike_on: str,
) -> Tensor:
    """See :func:`lightning_polystep.kernels.lif_spikes`."""
    output = lif(
        current.expand(num_steps, -1),
        beta,
        threshold,
        reset_mechanism=cast("ResetMechanism", reset_mechanism),
        reset_delay=reset_delay,
        spike_on=cast("SpikeOn", spike_on),
        return_membrane=True,  # without it, the layer would come here for its spikes
    )
    assert isinstance(output, LIFOutput)
    return output.spikes
