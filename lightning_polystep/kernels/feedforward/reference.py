"""The layers behind a candidate's unit in plain torch: their arguments, what is wrong with them, and the losses."""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from lightning_polystep.kernels.readout.reference import check_target, check_tensor, dense_targets

LossKind = Literal["cross_entropy", "mse"]


class Scores(NamedTuple):
    """What ends a network: one score per class, and the loss.

    Args:
        scores: Of the incumbent, (N, C), float32 or float64.
        target: Class of each sample, (N,) int64; or, in any float dtype, (N, C).
        loss: What is paid per sample, with x the scores and w the targets, one-hot where they are classes:
            ``"cross_entropy"`` of softmax(x), or ``"mse"``, the mean over classes of (x - w)^2; so that N times
            ``torch.nn.CrossEntropyLoss()`` or ``torch.nn.MSELoss()`` is the sum over samples.
        label_smoothing: As in ``torch.nn.CrossEntropyLoss``.
    """

    scores: Tensor
    target: Tensor
    loss: str
    label_smoothing: float


class Behind(NamedTuple):
    """L layers of units behind the candidates' layer, in their order; each tuple holds one entry per layer.

    Args:
        preactivations: h, of the incumbent, (N, H).
        boundaries: b, (D, P), ascending, with D = 1 or H; empty where the layer is ReLU.
        levels: l, (D, P + 1): the layer's step function is l_q, q the number of boundaries at or below h; empty, of
            any shape with a 0, where the layer is ReLU.
        weights: Of the linear layers, L + 1 of them: from the candidates' layer, (H_1, U), to the scores, (C, H_L).
    """

    preactivations: tuple[Tensor, ...]
    boundaries: tuple[Tensor, ...]
    levels: tuple[Tensor, ...]
    weights: tuple[Tensor, ...]


def is_relu(levels: Tensor) -> bool:
    """Tell the two kinds of layers apart."""
    return levels.numel() == 0


def step_function(preactivation: Tensor, boundaries: Tensor, levels: Tensor) -> Tensor:
    """Look up the level of each unit, (..., H), in tables (D, P) and (D, P + 1)."""
    outcome = (preactivation[..., None] >= boundaries).sum(-1)
    unit = torch.arange(preactivation.shape[-1], device=levels.device) % len(levels)
    return levels[unit.expand_as(outcome), outcome]


def activation(preactivation: Tensor, boundaries: Tensor, levels: Tensor) -> Tensor:
    """Return what the units of a layer behind send, (..., H)."""
    return preactivation.clamp(min=0) if is_relu(levels) else step_function(preactivation, boundaries, levels)


def scores_behind(behind: Behind, scores: Tensor, unit: int, changes: Tensor) -> Tensor:
    """Return the scores, (..., N, C), after the value of one unit changed by ``changes``, (..., N)."""
    arriving, weight = changes[..., None], behind.weights[0][:, unit, None]
    for h, boundaries, levels, following in zip(*behind[:3], behind.weights[1:], strict=True):
        before = activation(h, boundaries, levels)
        arriving = activation(_fed(h, arriving, weight), boundaries, levels) - before
        weight = following
    return _fed(scores, arriving, weight)


def _fed(preactivation: Tensor, changes: Tensor, weight: Tensor) -> Tensor:
    """Add what changed values (..., N, H) feed the next layer: unit by unit, so that all round alike."""
    for unit in range(changes.shape[-1]):
        preactivation = preactivation + changes[..., unit, None] * weight[:, unit]
    return preactivation


def losses(head: Scores, scores: Tensor) -> Tensor:
    """Return the loss of every sample, (..., N), float64, for scores (..., N, C) in place of the incumbent's."""
    weights, scores = target_weights(head), scores.double()
    if head.loss == "mse":
        return ((scores - weights) ** 2).mean(-1)
    return -(weights * scores.log_softmax(-1)).sum(-1)


def target_weights(head: Scores) -> Tensor:
    """Return w, the targets as one float64 number per sample and class, (N, C), smoothed where that is asked for."""
    return dense_targets(head.target, head.scores.shape[-1], head.label_smoothing)


def check_scores(head: Scores, name: str) -> None:
    """Refuse what an implementation would answer with nonsense.

    Args:
        head: The arguments.
        name: What errors call the operator.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option or a class is wrong.
    """
    if head.loss not in get_args(LossKind):
        raise ValueError(f"{name}: loss must be one of {', '.join(get_args(LossKind))}, got {head.loss!r}.")
    if head.label_smoothing and head.loss == "mse":
        raise ValueError(f"{name}: label_smoothing belongs to a cross-entropy; smooth the targets of mse yourself.")
    scores = head.scores
    if scores.ndim != 2 or 0 in scores.shape:
        raise ValueError(f"{name}: scores must be (N, C), neither of them 0, got {tuple(scores.shape)}.")
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: scores must be float32 or float64, got {scores.dtype}.")
    check_target(head.target, scores.shape[0], scores.shape[1], name)


def check_behind(behind: Behind, head: Scores, preactivation: Tensor, shifts: Tensor, name: str) -> None:
    """Refuse wrong shapes (ValueError) and dtypes (TypeError) of the layers between candidates and scores.

    Args:
        behind: The layers.
        head: What ends the network; already checked.
        preactivation: Of the candidates' layer, (N, U).
        shifts: (N, V), or (U, N, V).
        name: What errors call the operator.
    """
    (samples, classes), dtype = head.scores.shape, head.scores.dtype
    units = preactivation.shape[-1]
    check_tensor(preactivation, (samples, units), dtype, f"{name}: preactivation")
    check_shifts(shifts, units, head, name)
    lengths = [len(tensors) for tensors in behind]
    if lengths != [lengths[0]] * 3 + [lengths[0] + 1]:
        raise ValueError(f"{name}: layers behind need a tensor each, and one weight more; got {lengths} tensors.")
    sizes = [units, *(h.shape[-1] for h in behind.preactivations), classes]
    for layer, weight in enumerate(behind.weights):
        check_tensor(weight, (sizes[layer + 1], sizes[layer]), dtype, f"{name}: weights[{layer}]")
    for layer, (h, boundaries, levels) in enumerate(zip(*behind[:3], strict=True)):
        check_tensor(h, (samples, sizes[layer + 1]), dtype, f"{name}: behind_preactivations[{layer}]")
        if is_relu(levels):
            if boundaries.numel():
                raise ValueError(f"{name}: behind_levels[{layer}] is empty, as for ReLU, but its boundaries are not.")
            continue
        roles = f"{name}: behind_boundaries[{layer}]", f"{name}: behind_levels[{layer}]"
        check_dictionary(boundaries, levels, sizes[layer + 1], dtype, roles)


def check_shifts(shifts: Tensor, units: int, head: Scores, name: str) -> None:
    """Refuse shifts that are neither (N, V) nor (U, N, V)."""
    leading = (units,) if shifts.ndim == 3 else ()
    check_tensor(shifts, (*leading, len(head.scores), shifts.shape[-1]), head.scores.dtype, f"{name}: shifts")


def check_dictionary(
    boundaries: Tensor, levels: Tensor, units: int, dtype: torch.dtype, roles: tuple[str, str]
) -> None:
    """Refuse boundaries that are not (1 or U, P) and ascending, and levels that are not (the same, P + 1)."""
    dictionaries, count = len(boundaries), boundaries.shape[-1]
    if dictionaries not in (1, units):
        raise ValueError(f"{roles[0]} must be for 1 or all {units} units, got {dictionaries}.")
    check_tensor(boundaries, (dictionaries, count), dtype, roles[0])
    check_tensor(levels, (dictionaries, count + 1), dtype, roles[1])
    if bool((boundaries.diff(dim=1) < 0).any()):
        raise ValueError(f"{roles[0]} must ascend.")
