"""Linear layers with element-wise functions, the scores and the loss: what is behind a unit whose value changes."""

from lightning_polystep.kernels.feedforward.reference import (
    Behind,
    LossKind,
    Scores,
    check_behind,
    check_dictionary,
    check_scores,
    check_shifts,
    is_relu,
    losses,
    scores_behind,
    step_function,
    target_weights,
)

__all__ = [
    "Behind",
    "LossKind",
    "Scores",
    "check_behind",
    "check_dictionary",
    "check_scores",
    "check_shifts",
    "is_relu",
    "losses",
    "scores_behind",
    "step_function",
    "target_weights",
]
