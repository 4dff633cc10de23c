"""Costs of candidates for the readout itself: LIF neurons on a current that changes over time."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel
from lightning_polystep.kernels.readout.reference import Readout, check_readout, check_tensor

_KERNEL = Kernel("lif_direct_costs")


@torch.library.custom_op("polystep::lif_direct_costs", mutates_args=())
def lif_direct_costs(
    shifts: Tensor,
    currents: Tensor,
    beta: Tensor,
    threshold: Tensor,
    target: Tensor,
    loss: str = "cross_entropy_count",
    reset_mechanism: str = "zero",
    reset_delay: bool = False,
    spike_on: str = "ge",
    label_smoothing: float = 0.0,
) -> Tensor:
    r"""Sum over the batch how each candidate of one output neuron changes the loss.

    Candidate (c, v) gives neuron c the currents :math:`I_{ntc} + s_{ntv}`; the neuron is simulated, and its new spike
    count or last membrane replaces one logit of the incumbent:

    .. math:: C_{cv} = \sum_n \ell_n(I_n + s_{nv} e_c) - \ell_n(I_n) .

    Results do not depend on the number of threads.

    Args:
        shifts: s, (N, T, V), times the probe radius; the same for all neurons; float32 or float64, as is every float
            tensor here unless it says otherwise.
        currents: I, (N, T, C), of the incumbent.
        beta: (C,).
        threshold: (C,).
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy_count"``, ``"cross_entropy_membrane"`` or ``"mse_rate"``; see
            :class:`~lightning_polystep.kernels.readout.Readout`, as for the rest.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires.
        label_smoothing: Of a cross-entropy.

    Returns:
        C, (C, V), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or a class is wrong.

    Example:
        A neuron that should fire in one of two steps: the second candidate makes it fire in both.

        >>> import torch
        >>> one = torch.ones(1)
        >>> lif_direct_costs(
        ...     torch.tensor([[[1.0, 1.0], [0.0, 1.0]]]),
        ...     torch.zeros(1, 2, 1),
        ...     one,
        ...     one,
        ...     torch.tensor([[0.5]]),
        ...     loss="mse_rate",
        ... )
        tensor([[-0.2500,  0.0000]], dtype=torch.float64)
    """
    name = "lif_direct_costs"
    readout = Readout(currents, beta, threshold, target, loss, reset_mechanism, reset_delay, spike_on, label_smoothing)
    check_readout(readout, name)
    check_tensor(shifts, (*currents.shape[:2], shifts.shape[-1]), currents.dtype, f"{name}: shifts")
    return _KERNEL(shifts, *readout)


@lif_direct_costs.register_fake
def _fake(shifts: Tensor, currents: Tensor, *_: object, **__: object) -> Tensor:
    return shifts.new_empty((currents.shape[2], shifts.shape[2]), dtype=torch.float64)
