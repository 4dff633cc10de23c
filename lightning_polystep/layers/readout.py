"""Modules that drop the time axis; see :mod:`lightning_polystep.functional.readout`."""

from torch import Tensor, nn

from lightning_polystep.functional.neurons import LIFOutput
from lightning_polystep.functional.readout import last_membrane, spike_count, spike_rate


class SpikeCount(nn.Module):
    """Count each neuron's spikes, ``(T, N, ...)`` to ``(N, ...)``.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import LIF, SpikeCount
        >>> network = torch.nn.Sequential(LIF(beta=1.0, num_steps=5), SpikeCount())
        >>> network(torch.tensor([[0.25, 0.5]]))
        tensor([[1., 2.]])
    """

    def forward(self, spikes: Tensor) -> Tensor:
        """See :func:`~lightning_polystep.functional.spike_count`."""
        return spike_count(spikes)


class SpikeRate(nn.Module):
    """Take each neuron's share of steps with a spike, ``(T, N, ...)`` to ``(N, ...)``.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import LIF, SpikeRate
        >>> network = torch.nn.Sequential(LIF(beta=1.0, num_steps=5), SpikeRate())
        >>> network(torch.tensor([[0.25, 0.5]]))
        tensor([[0.2000, 0.4000]])
    """

    def forward(self, spikes: Tensor) -> Tensor:
        """See :func:`~lightning_polystep.functional.spike_rate`."""
        return spike_rate(spikes)


class LastMembrane(nn.Module):
    """Take each neuron's membrane after the last step; the layer before needs ``return_membrane=True``.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import LIF, LastMembrane
        >>> network = torch.nn.Sequential(LIF(beta=1.0, num_steps=3, return_membrane=True), LastMembrane())
        >>> network(torch.tensor([[0.25]]))
        tensor([[0.7500]])
    """

    def forward(self, output: LIFOutput) -> Tensor:
        """See :func:`~lightning_polystep.functional.last_membrane`."""
        return last_membrane(output)
