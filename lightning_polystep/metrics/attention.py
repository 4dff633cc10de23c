"""How hard attention spreads its choices, and how often a choice is arbitrary."""

import torch
from torch import Tensor

from lightning_polystep.metrics.counting import CountingMetric


class AttentionCoverage(CountingMetric):
    r"""Share of keys that some query chose.

    .. math::
        c = \frac{\sum_n \#\{s : \exists l, j_{nl} = s\}}{\sum_n S_n}

    where :math:`j` are ``indices``, l counts queries, n samples and heads, and :math:`S_n` is the number of keys that
    are ``available``. L queries cover at most the share L / S.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import AttentionCoverage
        >>> coverage = AttentionCoverage()
        >>> coverage.update(torch.tensor([[0, 2, 2], [1, 1, 1]]), num_keys=4)
        >>> coverage.compute()
        tensor(0.3750)
    """

    chosen: Tensor
    keys: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_count("chosen")
        self.add_count("keys")

    def update(self, indices: Tensor, num_keys: int, available: Tensor | None = None) -> None:
        """Count.

        Args:
            indices: Which key each query took, integers ``(..., L)``; -1 for a query that took none.
            num_keys: S, the keys there are.
            available: Boolean, broadcasts to ``(..., S)``, True where some query may take the key; all by default.

        Raises:
            TypeError: If the indices are not integers.
            ValueError: If they have no dimension, an index is out of range, or ``available`` does not fit.
        """
        if indices.is_floating_point() or indices.dtype == torch.bool:
            raise TypeError(f"AttentionCoverage: indices must be integers, got {indices.dtype}.")
        if indices.ndim == 0:
            raise ValueError("AttentionCoverage: indices must be (..., L), got a scalar.")
        taken = indices.detach().long()
        if taken.numel() and (int(taken.min()) < -1 or int(taken.max()) >= num_keys):
            raise ValueError(
                f"AttentionCoverage: indices must be -1 to {num_keys - 1}, "
                f"got {int(taken.min())} to {int(taken.max())}."
            )
        # One place more, for the queries that took nothing.
        seen = torch.zeros(*taken.shape[:-1], num_keys + 1, dtype=torch.bool, device=taken.device)
        seen.scatter_(-1, taken + 1, True)
        chosen = seen[..., 1:]
        there = torch.ones_like(chosen) if available is None else self._expanded(available, chosen)
        self.chosen += (chosen & there).sum()
        self.keys += there.sum()

    def compute(self) -> Tensor:
        """Return c, a scalar in [0, 1]; NaN if there was no key."""
        return self.chosen / self.keys

    @staticmethod
    def _expanded(available: Tensor, chosen: Tensor) -> Tensor:
        try:
            return available.to(torch.bool).expand_as(chosen)
        except RuntimeError as error:
            raise ValueError(
                f"AttentionCoverage: available of shape {tuple(available.shape)} does not broadcast to "
                f"(..., S), {tuple(chosen.shape)}."
            ) from error


class TieRate(CountingMetric):
    r"""Share of choices in which several candidates had the best score, so that their order decided.

    .. math::
        t = \frac{\#\{l : \#\{s : a_{ls} = \max_{s'} a_{ls'}\} > 1\}}{\#\{l\}}

    where :math:`a` is ``scores``, l counts choices and s what is chosen from. A choice whose scores are all minus
    infinity, a query whose keys are all masked, is none and does not count.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import TieRate
        >>> ties = TieRate()
        >>> ties.update(torch.tensor([[1.0, 2.0, 2.0], [3.0, 2.0, 2.0]]))
        >>> ties.compute()
        tensor(0.5000)

    Source:
        The tie decides what hard attention can compute: Jerad et al. 2025, arXiv 2503.14615.
    """

    tied: Tensor
    choices: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_count("tied")
        self.add_count("choices")

    def update(self, scores: Tensor) -> None:
        """Count.

        Args:
            scores: ``(..., S)``, minus infinity where a choice is forbidden: attention's scores, or those of a router.

        Raises:
            ValueError: If there is nothing to choose from.
        """
        if scores.ndim == 0 or scores.shape[-1] == 0:
            raise ValueError(f"TieRate: scores must be (..., S) with S of at least 1, got {tuple(scores.shape)}.")
        best = scores.detach().amax(-1, keepdim=True)
        real = (best != -torch.inf).squeeze(-1)
        self.tied += (((scores == best).sum(-1) > 1) & real).sum()
        self.choices += real.sum()

    def compute(self) -> Tensor:
        """Return t, a scalar in [0, 1]; NaN if there was no choice."""
        return self.tied / self.choices
