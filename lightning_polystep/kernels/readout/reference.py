"""The readout in plain torch: its arguments, what is wrong with them, and the loss of each sample."""

from typing import Literal, NamedTuple, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn, check_step_options
from lightning_polystep.functional.lif import lif
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism, check_lif_options

LossKind = Literal["cross_entropy_count", "cross_entropy_membrane", "mse_rate"]


class Readout(NamedTuple):
    """One LIF neuron per class, and the loss of its spike counts or last membranes.

    Args:
        currents: Input currents of the incumbent, (N, T, C), float32 or float64.
        beta: Share of the membrane kept per step, (C,), in the dtype of ``currents``, as is ``threshold``.
        threshold: Membrane at which a neuron fires, (C,).
        target: Class of each sample, (N,) int64; or, in any float dtype, (N, C): the probabilities of a
            cross-entropy, the rates of an MSE.
        loss: What is paid per sample, with k the spike counts, u the last membranes and w the targets, one-hot where
            they are classes: ``"cross_entropy_count"`` (logits k), ``"cross_entropy_membrane"`` (logits u), or
            ``"mse_rate"``, the mean over classes of (k / T - w)^2, as ``torch.nn.MSELoss`` of the rates.
        reset_mechanism: As in :func:`~lightning_polystep.functional.lif`, as are the next two.
        reset_delay: Whether the reset comes one step later.
        spike_on: Whether a membrane exactly at the threshold fires.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
    """

    currents: Tensor
    beta: Tensor
    threshold: Tensor
    target: Tensor
    loss: str
    reset_mechanism: str
    reset_delay: bool
    spike_on: str
    label_smoothing: float


def readout_losses(readout: Readout, currents: Tensor) -> Tensor:
    """Simulate the readout from rest and return the loss of every sample.

    Args:
        readout: All but its ``currents`` is used.
        currents: (..., N, T, C).

    Returns:
        Losses (..., N), float64; the simulation runs in the dtype of ``currents``, the loss in float64.
    """
    scores, weights = readout_scores(readout, currents), target_weights(readout)
    if readout.loss == "mse_rate":
        return ((scores / currents.shape[-2] - weights) ** 2).mean(-1)
    return -(weights * scores.log_softmax(-1)).sum(-1)


def readout_scores(readout: Readout, currents: Tensor) -> Tensor:
    """Simulate the readout from rest and return what its loss sees: spike counts, or last membranes.

    Args:
        readout: All but its ``currents`` is used.
        currents: (..., N, T, C).

    Returns:
        Scores (..., N, C), float64.
    """
    output = lif(
        currents.movedim(-2, 0),
        readout.beta,
        readout.threshold,
        reset_mechanism=cast("ResetMechanism", readout.reset_mechanism),
        reset_delay=readout.reset_delay,
        spike_on=cast("SpikeOn", readout.spike_on),
        return_membrane=True,
        name="readout",
    )
    assert isinstance(output, LIFOutput)
    by_membrane = readout.loss == "cross_entropy_membrane"
    return output.membrane[-1].double() if by_membrane else output.spikes.double().sum(0)


def target_weights(readout: Readout) -> Tensor:
    """Return w, the targets as one float64 number per sample and class, (N, C), smoothed where that is asked for."""
    return dense_targets(readout.target, readout.currents.shape[-1], readout.label_smoothing)


def dense_targets(target: Tensor, classes: int, label_smoothing: float) -> Tensor:
    """Return the targets as one float64 number per sample and class, (N, C): one-hot where they are classes, (N,)."""
    dense = target.double() if target.is_floating_point() else F.one_hot(target, classes).double()
    return (1 - label_smoothing) * dense + label_smoothing / classes


def fire_at(threshold: Tensor, spike_on: str) -> Tensor:
    """Return the least membranes that fire, so that >= serves ``"gt"`` as well."""
    return threshold if spike_on == "ge" else torch.nextafter(threshold, torch.full_like(threshold, torch.inf))


def check_readout(readout: Readout, name: str) -> None:
    """Refuse what an implementation would answer with nonsense.

    Args:
        readout: The arguments.
        name: What errors call the operator.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or a class is wrong.
    """
    check_lif_options(None, readout.reset_mechanism, name)
    check_step_options(readout.spike_on, "zero", name)
    if readout.loss not in get_args(LossKind):
        raise ValueError(f"{name}: loss must be one of {', '.join(get_args(LossKind))}, got {readout.loss!r}.")
    if readout.label_smoothing and readout.loss == "mse_rate":
        raise ValueError(
            f"{name}: label_smoothing belongs to a cross-entropy; smooth the targets of mse_rate yourself."
        )
    currents = readout.currents
    if currents.ndim != 3 or 0 in currents.shape:
        raise ValueError(f"{name}: currents must be (N, T, C), none of them 0, got {tuple(currents.shape)}.")
    samples, _, classes = currents.shape
    if currents.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: currents must be float32 or float64, got {currents.dtype}.")
    for role in ("beta", "threshold"):
        check_tensor(getattr(readout, role), (classes,), currents.dtype, f"{name}: {role}")
    check_target(readout.target, samples, classes, name)


def check_target(target: Tensor, samples: int, classes: int, name: str) -> None:
    """Refuse targets that are neither (N,) int64 classes nor (N, C) floats."""
    if target.is_floating_point():
        check_tensor(target, (samples, classes), target.dtype, f"{name}: target")
        return
    check_tensor(target, (samples,), torch.int64, f"{name}: target")
    if bool(((target < 0) | (target >= classes)).any()):
        raise ValueError(f"{name}: target holds classes outside 0 to {classes - 1}.")


def check_tensor(tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, name: str) -> None:
    """Refuse another shape (ValueError) or dtype (TypeError)."""
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} must have shape {shape}, got {tuple(tensor.shape)}.")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, got {tensor.dtype}.")
