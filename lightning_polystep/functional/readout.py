"""What a classifier reads from spiking neurons: one number per neuron, without the time axis."""

from torch import Tensor

from lightning_polystep.functional.neurons import LIFOutput


def spike_count(spikes: Tensor) -> Tensor:
    r"""Count each neuron's spikes, :math:`c = \sum_t s_t`.

    Args:
        spikes: ``(T, N, ...)``, zeros and ones.

    Returns:
        Counts of shape ``(N, ...)`` in the dtype of ``spikes``; exact up to 256 in bfloat16 and 2048 in float16.

    Raises:
        TypeError: If given a :class:`~lightning_polystep.functional.LIFOutput` instead of its ``spikes``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import spike_count
        >>> spike_count(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]))
        tensor([[1., 2.]])
    """
    if isinstance(spikes, LIFOutput):
        raise TypeError("spike_count: got spikes and membrane; use return_membrane=False, or pass output.spikes.")
    return spikes.sum(0)


def spike_rate(spikes: Tensor) -> Tensor:
    r"""Return each neuron's share of steps with a spike, :math:`r = \frac1T \sum_t s_t`.

    Args:
        spikes: ``(T, N, ...)``, zeros and ones.

    Returns:
        Rates in [0, 1] of shape ``(N, ...)`` in the dtype of ``spikes``.

    Raises:
        TypeError: If given a :class:`~lightning_polystep.functional.LIFOutput` instead of its ``spikes``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import spike_rate
        >>> spike_rate(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]))
        tensor([[0.5000, 1.0000]])
    """
    if isinstance(spikes, LIFOutput):
        raise TypeError("spike_rate: got spikes and membrane; use return_membrane=False, or pass output.spikes.")
    return spikes.sum(0) / len(spikes)


def last_membrane(output: LIFOutput) -> Tensor:
    r"""Take each neuron's membrane after the last step, :math:`u_T`.

    Args:
        output: What ``lif(..., return_membrane=True)`` returned, ``(T, N, ...)``.

    Returns:
        Membranes of shape ``(N, ...)``.

    Raises:
        TypeError: If given spikes alone.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import last_membrane, lif
        >>> last_membrane(lif(torch.tensor([0.25]), beta=1.0, num_steps=3, return_membrane=True))
        tensor([0.7500])
    """
    if not isinstance(output, LIFOutput):
        raise TypeError("last_membrane: got no membrane; set return_membrane=True on the layer before it.")
    return output.membrane[-1]
