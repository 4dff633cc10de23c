"""How the levels of a step function are used."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_polystep.metrics.counting import CountingMetric, count_indices, normalised_entropy

# An output may be off its level by the rounding of another dtype, and no more.
_TOLERANCE = 1e-2


class LevelOccupancy(CountingMetric):
    r"""Share of outputs on each level of a step function, and how even the shares are.

    .. math::
        p_k = \frac{\#\{j : y_j = v_k\}}{\#\{j\}}, \qquad
        \text{used} = \frac1K \#\{k : p_k > 0\}, \qquad
        \text{entropy} = -\frac{1}{\log K} \sum_k p_k \log p_k

    where :math:`y` are ``outputs``, :math:`v` are the K ``levels``.

    Args:
        levels: All values of the step function, increasing; ``layer.levels(dtype)`` returns them.

    Raises:
        ValueError: If there is no level, or they do not increase.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Staircase
        >>> from lightning_polystep.metrics import LevelOccupancy
        >>> layer = Staircase(levels=2, squash="clamp")
        >>> occupancy = LevelOccupancy(layer.levels(torch.float32))
        >>> occupancy.update(layer(torch.tensor([-3.0, 0.2, 0.4, 0.6])))
        >>> occupancy.compute()
        {'share': tensor([0.7500, 0.2500, 0.0000]), 'used': tensor(0.6667), 'entropy': tensor(0.5119)}
    """

    counts: Tensor
    levels: Tensor

    def __init__(self, levels: Tensor | Sequence[float]) -> None:
        super().__init__()
        values = torch.as_tensor(levels).detach().clone().flatten()
        if len(values) == 0 or not bool((values.diff() > 0).all()):
            raise ValueError(f"LevelOccupancy: levels must be increasing, at least one, got {values.tolist()}.")
        self.register_buffer("levels", values, persistent=False)
        self.add_count("counts", len(values))

    def update(self, outputs: Tensor) -> None:
        """Count.

        Args:
            outputs: Of the step function, any shape; NaN, which is on no level, is left out.

        Raises:
            ValueError: If an output is no level.
        """
        given = outputs.detach().flatten()
        wide = given.dtype if given.dtype == torch.float64 else torch.float32
        given = given[~given.isnan()].to(wide)
        # In the dtype of the outputs first: 0.2 is another number in each.
        levels = self.levels.to(outputs).to(wide)
        above = torch.searchsorted(levels, given).clamp(max=len(levels) - 1)
        below = (above - 1).clamp(min=0)
        index = torch.where((levels[above] - given).abs() <= (levels[below] - given).abs(), above, below)
        gap = levels.diff().min() if len(levels) > 1 else levels.new_ones(())
        if not bool(((levels[index] - given).abs() <= _TOLERANCE * gap).all()):
            raise ValueError(f"LevelOccupancy: the outputs must be among the {len(levels)} levels, got others.")
        self.counts += count_indices(index, len(levels), "LevelOccupancy", "levels")

    def compute(self) -> dict[str, Tensor]:
        """Return ``share``, shape (K,), and the scalars ``used`` and ``entropy``, in [0, 1]; NaN without outputs."""
        total = self.counts.sum()
        seen = total.clamp(max=1)
        return {
            "share": self.counts / total,
            "used": ((self.counts > 0).sum() * seen) / (len(self.counts) * seen),
            "entropy": normalised_entropy(self.counts),
        }
