"""A fully connected network of hard spiking neurons."""

from collections.abc import Sequence
from itertools import pairwise
from typing import cast

import torch
from torch import nn

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.neurons import ResetMechanism
from lightning_polystep.layers import LIF, Sliced, SpikeCount, TimeFirst
from models.initialisation import unit_preactivations_
from models.sizes import check_sizes

# Two slices for 1024 samples with 15 steps of 128 neurons. Slices half as large are slower, and slices twice as large
# no faster, while they double what a step takes beside the batch.
SLICE_BYTES = 4 * 2**20


class SpikingMLP(Sliced):
    """Fully connected spiking layers whose output spike counts are the class scores.

    The first layer of neurons receives its current unchanged at each of ``num_steps`` steps; every later one is driven
    by the spikes before it. Large batches are run in slices, so that memory grows with neither T nor the batch.

    Without ``num_steps`` the inputs change over time, ``(N, T, ...)``: events, or anything else that has a time axis.
    They take more memory than the spikes, so nothing is gained by slices and the batch is run whole.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        num_steps: Time steps; None where the inputs have a time axis, after that of the batch.
        beta: Share of the membrane kept per step.
        threshold: Membrane at which a neuron fires.
        reset_mechanism: What a spike does to the membrane.
        spike_on: Whether a membrane exactly at the threshold fires (``"ge"``) or not (``"gt"``).
        learn_beta: Whether each layer's ``beta`` is a parameter.
        learn_threshold: Whether each layer's ``threshold`` is a parameter.
        input_mean_square: Of the inputs, for first weights that make the currents of the first layer about 1; None for
            torch's own, which are an eighth of that on sparse events.
        slice_bytes: What the spikes of the widest layer may take, in torch's default dtype; None for no limit.

    Raises:
        ValueError: If ``sizes`` names fewer than two.

    Example:
        >>> import torch
        >>> from models import SpikingMLP
        >>> SpikingMLP((784, 128, 10))(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])
        >>> SpikingMLP((392, 128, 10), num_steps=None)(torch.ones(2, 12, 2, 14, 14)).shape
        torch.Size([2, 10])
    """

    def __init__(  # noqa: PLR0913 - each option has a default
        self,
        sizes: Sequence[int] = (784, 128, 10),
        num_steps: int | None = 15,
        beta: float = 0.95,
        threshold: float = 1.0,
        reset_mechanism: ResetMechanism = "zero",
        spike_on: SpikeOn = "ge",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        *,
        input_mean_square: float | None = None,
        slice_bytes: int | None = SLICE_BYTES,
    ) -> None:
        check_sizes(sizes, "SpikingMLP")

        def neurons(steps: int | None) -> LIF:
            return LIF(
                beta=beta,
                threshold=threshold,
                num_steps=steps,
                reset_mechanism=reset_mechanism,
                spike_on=spike_on,
                learn_beta=learn_beta,
                learn_threshold=learn_threshold,
            )

        layers: list[nn.Module] = [nn.Flatten() if num_steps is not None else TimeFirst()]
        for index, (features_in, features_out) in enumerate(pairwise(sizes)):
            layers += [nn.Linear(features_in, features_out), neurons(num_steps if index == 0 else None)]
        samples = None
        if slice_bytes is not None and num_steps is not None:
            samples = max(1, slice_bytes // (num_steps * max(sizes[1:]) * torch.get_default_dtype().itemsize))
        if input_mean_square is not None:
            unit_preactivations_(cast("nn.Linear", layers[1]), input_mean_square)
        super().__init__(*layers, SpikeCount(), samples=samples)
