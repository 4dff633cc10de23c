"""All spike trains that a constant current can cause, and the exact currents between which each of them holds."""

from typing import cast

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.lif import lif
from lightning_polystep.functional.neurons import ResetMechanism
from lightning_polystep.kernels.bisection import bisect, check_dtype


def lif_outcome_dictionary(
    beta: float | Tensor,
    threshold: float | Tensor,
    num_steps: int,
    *,
    reset_mechanism: ResetMechanism = "zero",
    reset_delay: bool = False,
    spike_on: SpikeOn = "ge",
    dtype: torch.dtype = torch.float32,
    lowest: float = -1e18,
    highest: float = 1e18,
) -> tuple[Tensor, Tensor]:
    r"""Tabulate what LIF neurons do on a constant current x: :math:`z(x) = z_q,\ q = \#\{p : x \ge \theta_p\}`.

    The trains of two currents part at a step where the larger one fires and the smaller one does not, because as long
    as they agree every operation of the neuron is monotone, rounding included. So trains are ordered by their current,
    equal trains have nothing else between them, and bisecting the floating-point numbers between unequal ones finds
    every boundary to the last bit: the table says exactly what :func:`~lightning_polystep.functional.lif` does in
    ``dtype``. With a reset to zero, or none, there are at most T + 1 trains; with subtraction there are more.

    Args:
        beta: A float, or (U,) with one value per neuron, as is ``threshold``.
        threshold: Membrane at which a neuron fires.
        num_steps: T.
        reset_mechanism: As in ``lif``, as are the next two.
        reset_delay: Whether the reset comes one step later.
        spike_on: Whether a membrane exactly at the threshold fires.
        dtype: float32 or float64: what the network computes in.
        lowest: Currents from here ...
        highest: ... to here are told apart.

    Returns:
        Boundaries :math:`\theta`, (D, P), ascending, in ``dtype``, and trains z, (D, P + 1, T), uint8. D is 1, or U if
        ``beta`` or ``threshold`` is a tensor of one dimension. Neurons with fewer trains than others have boundaries
        at infinity, behind which their last train is repeated.

    Raises:
        TypeError: If ``dtype`` is neither float32 nor float64.

    Example:
        >>> from lightning_polystep.kernels import lif_outcome_dictionary
        >>> boundaries, trains = lif_outcome_dictionary(beta=1.0, threshold=1.0, num_steps=2)
        >>> boundaries, trains.tolist()
        (tensor([[0.5000, 1.0000]]), [[[0, 0], [0, 1], [1, 1]]])
    """
    name = "lif_outcome_dictionary"
    check_dtype(dtype, name)
    leak, level = torch.broadcast_tensors(torch.as_tensor(beta, dtype=dtype), torch.as_tensor(threshold, dtype=dtype))
    leak, level = leak.reshape(-1), level.reshape(-1)

    def simulate(neuron: Tensor, current: Tensor) -> Tensor:
        spikes = lif(
            current[None],
            leak[neuron],
            level[neuron],
            num_steps=num_steps,
            reset_mechanism=reset_mechanism,
            reset_delay=reset_delay,
            spike_on=spike_on,
            name=name,
        )
        return cast("Tensor", spikes)[:, 0].T.to(torch.uint8)

    return _table(*bisect(simulate, torch.full_like(leak, lowest), torch.full_like(leak, highest)))


def _table(first: Tensor, neuron: Tensor, boundary: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    members = [neuron == index for index in range(len(first))]
    most = max(int(member.sum()) for member in members)
    boundaries = torch.full((len(first), most), float("inf"), dtype=boundary.dtype)
    trains = first[:, None].repeat(1, most + 1, 1)
    for row, member in enumerate(members):
        count = int(member.sum())
        boundaries[row, :count] = boundary[member]
        trains[row, 1 : count + 1] = train[member]
        trains[row, count + 1 :] = trains[row, count]
    return boundaries, trains
