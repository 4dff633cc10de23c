"""Costs of candidates for a hidden LIF layer on a constant current, by the outcomes that they can reach."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel
from lightning_polystep.kernels.readout.reference import Readout, check_readout, check_tensor

_KERNEL = Kernel("lif_outcome_costs")


@torch.library.custom_op("polystep::lif_outcome_costs", mutates_args=())
def lif_outcome_costs(
    preactivation: Tensor,
    shifts: Tensor,
    boundaries: Tensor,
    trains: Tensor,
    weight: Tensor,
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
    r"""Sum over the batch how each candidate of one hidden unit changes the loss.

    Candidate (u, v) gives hidden neuron u the constant current :math:`x = a_{nu} + s_{nv}` on sample n, of which only
    the outcome :math:`q(x) = \#\{p : x \ge \theta_p\}` matters, a spike train :math:`z_q`. The readout then gets

    .. math:: I'_{ntc} = I_{ntc} + W_{cu} \, (z_{q(x)} - z_{q(a_{nu})})_t, \qquad
              C_{uv} = \sum_n \ell_n(I'_n) - \ell_n(I_n) .

    The loss is a step function of the shift: it is evaluated once per outcome that some candidate may reach, and its
    jumps are added to all candidates beyond them. Results do not depend on the number of threads.

    Args:
        preactivation: a, (N, U), float32 or float64, as is every float tensor here unless it says otherwise.
        shifts: s, (N, V), times the probe radius; the same for all units.
        boundaries: :math:`\theta`, (D, P), ascending; D is 1, or U with boundaries for each neuron. Infinite ones are
            never reached.
        trains: z, (D, P + 1, T), uint8 zeros and ones.
        weight: W, (C, U), of the linear layer between the hidden neurons and the readout.
        currents: I, (N, T, C), of the incumbent.
        beta: Of the readout's neurons, (C,).
        threshold: Of the readout's neurons, (C,).
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy_count"``, ``"cross_entropy_membrane"`` or ``"mse_rate"``; see
            :class:`~lightning_polystep.kernels.readout.Readout`, as for the rest.
        reset_mechanism: Of the readout.
        reset_delay: Of the readout.
        spike_on: Of the readout.
        label_smoothing: Of a cross-entropy.

    Returns:
        C, (U, V), float64. From float32 inputs its error is about 1e-6 of the sum of the absolute jumps.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or a class is wrong.

    Example:
        One hidden neuron fires at step 2 from a current of 0.5 on and at once from 1 on; the readout copies it. The
        target is to fire once: the incumbent (0.25) does not, the first candidate does, the second fires twice.

        >>> import torch
        >>> one = torch.ones(1)
        >>> lif_outcome_costs(
        ...     torch.tensor([[0.25]]),
        ...     torch.tensor([[0.25, 1.0]]),
        ...     torch.tensor([[0.5, 1.0]]),
        ...     torch.tensor([[[0, 0], [0, 1], [1, 1]]], dtype=torch.uint8),
        ...     torch.ones(1, 1),
        ...     torch.zeros(1, 2, 1),
        ...     one,
        ...     one,
        ...     torch.tensor([[0.5]]),
        ...     loss="mse_rate",
        ... )
        tensor([[-0.2500,  0.0000]], dtype=torch.float64)
    """
    readout = Readout(currents, beta, threshold, target, loss, reset_mechanism, reset_delay, spike_on, label_smoothing)
    _check(preactivation, shifts, boundaries, trains, weight, readout)
    return _KERNEL(preactivation, shifts, boundaries, trains, weight, *readout)


@lif_outcome_costs.register_fake
def _fake(preactivation: Tensor, shifts: Tensor, *_: object, **__: object) -> Tensor:
    return preactivation.new_empty((preactivation.shape[1], shifts.shape[1]), dtype=torch.float64)


def _check(
    preactivation: Tensor, shifts: Tensor, boundaries: Tensor, trains: Tensor, weight: Tensor, readout: Readout
) -> None:
    name, dtype = "lif_outcome_costs", readout.currents.dtype
    check_readout(readout, name)
    samples, steps, classes = readout.currents.shape
    units = preactivation.shape[-1]
    check_tensor(preactivation, (samples, units), dtype, f"{name}: preactivation")
    check_tensor(shifts, (samples, shifts.shape[-1]), dtype, f"{name}: shifts")
    check_tensor(weight, (classes, units), dtype, f"{name}: weight")
    dictionaries, count = len(boundaries), boundaries.shape[-1]
    if dictionaries not in (1, units):
        raise ValueError(f"{name}: boundaries must be for 1 or all {units} neurons, got {dictionaries}.")
    check_tensor(boundaries, (dictionaries, count), dtype, f"{name}: boundaries")
    check_tensor(trains, (dictionaries, count + 1, steps), torch.uint8, f"{name}: trains")
    if bool((boundaries.diff(dim=1) < 0).any()):
        raise ValueError(f"{name}: boundaries must ascend.")
