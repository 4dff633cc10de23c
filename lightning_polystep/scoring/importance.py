r"""Score: on which samples of a batch candidates are scored, when those that are learnt have little to tell.

With :math:`p` the softmax of the scores x and :math:`w` the targets, a small change of the scores changes a sample's
cross-entropy by :math:`(p - w) \cdot dx`: nothing where the network is right and sure. At 97 % that is most of a batch,
and the commit pass has shown of which samples. So sample n is scored with the chance

.. math:: \pi_n = \min\Bigl(1, \pi_0 + \frac{e_n}{e^*}\Bigr), \qquad e_n = \tfrac12 \lVert p_n - w_n \rVert_1 ,

and then counts :math:`1 / \pi_n` times, so that the expectation of every candidate's cost is its cost on the batch.

References:
    Katharopoulos & Fleuret, "Not All Samples Are Created Equal: Deep Learning with Importance Sampling", ICML 2018,
    section 3, for gradients.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

# Of a sample without an error. No sample then counts more than 33 times.
_LEAST_CHANCE = 0.03


class Selection(NamedTuple):
    """The samples of a batch that are scored.

    Args:
        chosen: Whether a sample is, (N,), bool.
        weights: How many samples each of the chosen ones stands for, (K,), float64.
    """

    chosen: Tensor
    weights: Tensor


def output_errors(scores: Tensor, targets: Tensor) -> Tensor:
    r"""Return :math:`e_n`, the total variation between what a network says and what it should say, (N,), float64.

    Args:
        scores: x, the logits, (N, C).
        targets: w, (N, C): probabilities.

    Example:
        >>> output_errors(torch.tensor([[0.0, 0.0], [9.0, 0.0]]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        tensor([5.0000e-01, 1.2339e-04], dtype=torch.float64)
    """
    return (scores.double().softmax(1) - targets).abs().sum(1) / 2


def select_samples(errors: Tensor, certain_error: float, draw: torch.Generator) -> Selection:
    r"""Draw the samples that are scored: systematically, so that their number varies by less than one.

    Args:
        errors: :math:`e_n`, (N,).
        certain_error: :math:`e^*`, above 0: samples whose error is at least that are always scored.
        draw: For one number, the place of a comb whose teeth are 1 apart on the cumulative chances.

    Example:
        >>> errors = torch.tensor([0.9, 0.0, 0.4, 0.0])
        >>> selection = select_samples(errors, certain_error=0.5, draw=torch.Generator().manual_seed(2))
        >>> selection.chosen.tolist(), selection.weights
        ([True, False, True, False], tensor([1.0000, 1.2048], dtype=torch.float64))
    """
    chances = (_LEAST_CHANCE + errors.double() / certain_error).clamp(max=1.0)
    # On the CPU, where the order of a sum, and so the choice, is always the same.
    until = chances.cpu().cumsum(0) + torch.rand((), dtype=torch.float64, generator=draw)
    teeth = until.floor().diff(prepend=(until[:1] - chances[:1].cpu()).floor())
    chosen = (teeth > 0).to(errors.device)
    return Selection(chosen, 1 / chances[chosen])
