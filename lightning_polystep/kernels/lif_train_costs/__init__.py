"""Costs of candidates for a hidden LIF layer on a current that changes over time, any number of LIF layers deep."""

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import check_step_options
from lightning_polystep.functional.neurons import check_lif_options
from lightning_polystep.kernels.dispatch import Kernel, Tensors
from lightning_polystep.kernels.lif_train_costs.reference import Hidden
from lightning_polystep.kernels.readout.reference import Readout, check_readout, check_tensor

_NAME = "lif_train_costs"
_KERNEL = Kernel(_NAME)


@torch.library.custom_op("polystep::lif_train_costs", mutates_args=())
def lif_train_costs(
    shifts: Tensor,
    hidden_currents: Tensors,
    hidden_betas: Tensors,
    hidden_thresholds: Tensors,
    weights: Tensors,
    currents: Tensor,
    beta: Tensor,
    threshold: Tensor,
    target: Tensor,
    loss: str = "cross_entropy_count",
    reset_mechanism: str = "zero",
    reset_delay: bool = False,
    spike_on: str = "ge",
    label_smoothing: float = 0.0,
    hidden_reset_mechanism: str = "zero",
    hidden_reset_delay: bool = False,
    hidden_spike_on: str = "ge",
) -> Tensor:
    r"""Sum over the batch how each candidate of one hidden unit changes the loss.

    The lists hold one tensor for each of L hidden layers, the layer of the candidates first. Candidate (u, v) gives
    its neuron u the currents :math:`X_{ntu} + s_{ntv}`, which fire a spike train :math:`z'`. The changes
    :math:`\Delta` of the trains, at first :math:`(z' - z_{nu}) \, e_u`, travel through the layers behind:

    .. math:: I^{k+1\prime}_{nt} = I^{k+1}_{nt} + W^k \Delta^k_{nt}, \qquad
              \Delta^{k+1}_n = \mathrm{lif}(I^{k+1\prime}_n) - \mathrm{lif}(I^{k+1}_n), \qquad
              C_{uv} = \sum_n \ell_n(I'_n) - \ell_n(I_n) ,

    where :math:`I` without an index is that of the readout. Equal trains of a unit are evaluated once, and each layer
    only from the first change on. Results do not depend on the number of threads; memory does not grow with the
    number of candidates.

    Args:
        shifts: s, (N, T, V), times the probe radius, the same for all units; (N, 1, V) where it is constant; float32
            or float64, as is every float tensor here unless it says otherwise.
        hidden_currents: X, (N, T, U), or (N, 1, U) where it is constant, then :math:`I^k`, (N, T, H), of each layer
            behind; all of the incumbent.
        hidden_betas: Of each layer, (U,) and (H,).
        hidden_thresholds: Of each layer, (U,) and (H,).
        weights: :math:`W^k` of the linear layer behind each hidden one, (H, U) and so on; the last is (C, H).
        currents: I, (N, T, C), of the incumbent; the only tensor that tells T if the others are constant.
        beta: Of the readout's neurons, (C,).
        threshold: Of the readout's neurons, (C,).
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy_count"``, ``"cross_entropy_membrane"`` or ``"mse_rate"``; see
            :class:`~lightning_polystep.kernels.readout.Readout`, as for the rest.
        reset_mechanism: Of the readout.
        reset_delay: Of the readout.
        spike_on: Of the readout.
        label_smoothing: Of a cross-entropy.
        hidden_reset_mechanism: Of all hidden layers.
        hidden_reset_delay: Of all hidden layers.
        hidden_spike_on: Of all hidden layers.

    Returns:
        C, (U, V), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option, a class or the number of layers is wrong.

    Example:
        A neuron that nothing excites, then one that copies it, then the readout, which copies that one. The target is
        to fire in one of two steps: the first candidate does, the second fires in both.

        >>> import torch
        >>> one, nothing = torch.ones(1), torch.zeros(1, 2, 1)
        >>> lif_train_costs(
        ...     torch.tensor([[[0.0, 1.0], [1.0, 1.0]]]),
        ...     [nothing, nothing],
        ...     [one, one],
        ...     [one, one],
        ...     [torch.ones(1, 1), torch.ones(1, 1)],
        ...     nothing,
        ...     one,
        ...     one,
        ...     torch.tensor([[0.5]]),
        ...     loss="mse_rate",
        ... )
        tensor([[-0.2500,  0.0000]], dtype=torch.float64)
    """
    readout = Readout(currents, beta, threshold, target, loss, reset_mechanism, reset_delay, spike_on, label_smoothing)
    hidden = Hidden(
        tuple(hidden_currents),
        tuple(hidden_betas),
        tuple(hidden_thresholds),
        tuple(weights),
        hidden_reset_mechanism,
        hidden_reset_delay,
        hidden_spike_on,
    )
    _check(shifts, hidden, readout)
    return _KERNEL(shifts, hidden, *readout)


@lif_train_costs.register_fake
def _fake(shifts: Tensor, hidden_currents: Tensors, *_: object, **__: object) -> Tensor:
    return shifts.new_empty((hidden_currents[0].shape[2], shifts.shape[2]), dtype=torch.float64)


def _check(shifts: Tensor, hidden: Hidden, readout: Readout) -> None:
    check_readout(readout, _NAME)
    check_lif_options(None, hidden.reset_mechanism, f"{_NAME}: hidden")
    check_step_options(hidden.spike_on, "zero", f"{_NAME}: hidden")
    lengths = [len(tensors) for tensors in hidden[:4]]
    if min(lengths) != max(lengths) or lengths[0] == 0:
        raise ValueError(f"{_NAME}: the four lists must have one tensor per hidden layer, got {lengths} tensors.")
    dtype, (samples, steps, classes) = readout.currents.dtype, readout.currents.shape
    check_tensor(shifts, (samples, _steps(shifts, steps), shifts.shape[-1]), dtype, f"{_NAME}: shifts")
    sizes = [currents.shape[-1] for currents in hidden.currents] + [classes]
    for layer, (currents, beta, threshold, weight) in enumerate(zip(*hidden[:4], strict=True)):
        size, length = sizes[layer], steps if layer else _steps(currents, steps)
        check_tensor(currents, (samples, length, size), dtype, f"{_NAME}: hidden_currents[{layer}]")
        check_tensor(beta, (size,), dtype, f"{_NAME}: hidden_betas[{layer}]")
        check_tensor(threshold, (size,), dtype, f"{_NAME}: hidden_thresholds[{layer}]")
        check_tensor(weight, (sizes[layer + 1], size), dtype, f"{_NAME}: weights[{layer}]")


def _steps(tensor: Tensor, steps: int) -> int:
    """Return 1 for a constant, else the number of steps."""
    return 1 if tensor.ndim == 3 and tensor.shape[1] == 1 else steps
