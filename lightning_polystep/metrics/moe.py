"""How a hard mixture of experts spreads its samples."""

import torch
from torch import Tensor

from lightning_polystep.metrics.counting import CountingMetric, check_at_least, count_indices, normalised_entropy


class _ExpertCounts(CountingMetric):
    """Base of what counts the samples of every expert."""

    load: Tensor

    def __init__(self, num_experts: int) -> None:
        super().__init__()
        self.num_experts = check_at_least(num_experts, 1, type(self).__name__, "num_experts")
        self.add_count("load", self.num_experts)

    def update(self, route: Tensor) -> None:
        """Count.

        Args:
            route: Index of each sample's expert, integers of any shape.

        Raises:
            TypeError: If the indices are not integers.
            ValueError: If one is out of range.
        """
        self.load += count_indices(route, self.num_experts, type(self).__name__, "route")


class ExpertLoad(_ExpertCounts):
    r"""Share of samples of each expert, and how even the shares are.

    .. math::
        p_e = \frac{\#\{n : r_n = e\}}{N}, \qquad
        \text{imbalance} = E \max_e p_e, \qquad
        \text{entropy} = -\frac{1}{\log E} \sum_e p_e \log p_e

    where :math:`r` is ``route``, N the number of samples and E is ``num_experts``. The imbalance is the largest share
    over the mean share: 1 for an even load, E if one expert has all.

    Args:
        num_experts: E.

    Raises:
        ValueError: If ``num_experts`` is below 1.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import ExpertLoad
        >>> load = ExpertLoad(4)
        >>> load.update(torch.tensor([0, 0, 1, 1]))
        >>> load.compute()
        {'share': tensor([0.5000, 0.5000, 0.0000, 0.0000]), 'imbalance': tensor(2.), 'entropy': tensor(0.5000)}

    Source:
        Fedus et al. 2022, *Switch transformers*, arXiv 2101.03961, section 2.2 (load balancing).
    """

    def compute(self) -> dict[str, Tensor]:
        """Return ``share``, shape (E,), and the scalars ``imbalance`` and ``entropy``; NaN if there was no sample."""
        share = self.load / self.load.sum()
        return {
            "share": share,
            "imbalance": self.num_experts * share.max(),
            "entropy": normalised_entropy(self.load),
        }


class DeadExperts(_ExpertCounts):
    r"""Number of experts without a sample, :math:`\#\{e : \nexists n, r_n = e\}`, where :math:`r` is ``route``.

    Over everything seen since the last reset: an expert may well sit out one batch.

    Args:
        num_experts: Number of experts.

    Raises:
        ValueError: If ``num_experts`` is below 1.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import DeadExperts
        >>> dead = DeadExperts(4)
        >>> dead.update(torch.tensor([0, 0, 1, 1]))
        >>> dead.compute()
        tensor(2.)
    """

    def compute(self) -> Tensor:
        """Return the number as a float scalar, from 0 to the number of experts; NaN if there was no sample."""
        seen = self.load.sum().clamp(max=1)
        return ((self.load == 0).sum() * seen) / seen


class RouterMargin(CountingMetric):
    r"""Mean lead of the best expert's score over the second best.

    .. math::
        m = \frac1N \sum_n \left( g_n^{(1)} - g_n^{(2)} \right)

    where :math:`g_n^{(1)} \ge g_n^{(2)}` are the two largest ``scores`` of sample n. The unit is that of the scores. A
    sample whose lead is not finite, as where all experts but one are masked, does not count.

    The sum of leads is a float: batches and processes in another order give the same up to rounding.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import RouterMargin
        >>> margin = RouterMargin()
        >>> margin.update(torch.tensor([[1.0, 0.0, 4.0], [2.0, 1.0, 0.0]]))
        >>> margin.compute()
        tensor(2.)
    """

    total: Tensor
    choices: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_count("total", dtype=torch.float32)
        self.add_count("choices")

    def update(self, scores: Tensor) -> None:
        """Add.

        Args:
            scores: The router's, ``(..., E)``.

        Raises:
            ValueError: If there are fewer than two experts.
        """
        if scores.ndim == 0 or scores.shape[-1] < 2:
            raise ValueError(f"RouterMargin: scores must be (..., E) with E of at least 2, got {tuple(scores.shape)}.")
        best = scores.detach().topk(2, dim=-1).values
        margin = best[..., 0] - best[..., 1]
        finite = margin.isfinite()
        self.total += torch.where(finite, margin, 0.0).sum(dtype=torch.float32)
        self.choices += finite.sum()

    def compute(self) -> Tensor:
        """Return m, a scalar of at least 0; NaN if there was no choice."""
        return self.total / self.choices
