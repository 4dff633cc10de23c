"""What the metrics share: counts that add up over batches and processes."""

import torch
from torch import Tensor
from torchmetrics import Metric


class CountingMetric(Metric):
    """Base of metrics whose states are sums, of whole numbers unless said otherwise.

    Sums make batches of unequal size count by their size, and processes need no more than an addition. Whole numbers
    (int64) keep them exact for any number of batches, and exist on every device. A share of nothing is NaN, without a
    warning of ours; torchmetrics itself warns when ``compute`` is called before any ``update``.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import CountingMetric
        >>> class Positives(CountingMetric):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.add_count("found")
        ...
        ...     def update(self, values):
        ...         self.found += (values > 0).sum()
        ...
        ...     def compute(self):
        ...         return self.found
        >>> metric = Positives()
        >>> metric.update(torch.tensor([1.0, -1.0, 2.0]))
        >>> metric.compute()
        tensor(2)
    """

    is_differentiable: bool | None = False
    higher_is_better: bool | None = None
    # What forward() returns for a batch then needs one update instead of two.
    full_state_update: bool | None = False

    def add_count(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> None:
        """Declare a state that starts at zero and is summed over processes.

        Args:
            name: Name of the attribute.
            shape: Its shape; a scalar by default.
            dtype: Of its numbers.
        """
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")


def normalised_entropy(counts: Tensor) -> Tensor:
    r"""Return how evenly counts are spread, :math:`H(p) / \log K` with :math:`p = c / \sum c` and :math:`c` ``counts``.

    Args:
        counts: Shape (K,), at least 0.

    Returns:
        A scalar: 1 for equal counts, and for K = 1; 0 if all are in one place; NaN if there are none.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics.counting import normalised_entropy
        >>> normalised_entropy(torch.tensor([2, 2, 0, 0]))
        tensor(0.5000)
    """
    share = counts / counts.sum()
    if len(counts) == 1:
        return share[0]
    entropy = -torch.special.xlogy(share, share).sum()
    # Not -0.0, which would be logged as such.
    return entropy.abs() / torch.tensor(float(len(counts)), device=counts.device).log()


def count_indices(indices: Tensor, size: int, name: str, what: str) -> Tensor:
    """Count how often each index occurs.

    Args:
        indices: Whole numbers from 0 to ``size`` - 1, any shape.
        size: Number of counts.
        name: What the error calls the metric.
        what: What it calls an index.

    Returns:
        Shape (size,), int64.

    Raises:
        TypeError: If the indices are not integers.
        ValueError: If one is out of range.
    """
    if indices.is_floating_point() or indices.is_complex() or indices.dtype == torch.bool:
        raise TypeError(f"{name}: {what} must be integers, got {indices.dtype}.")
    flat = indices.detach().flatten().long()
    if flat.numel() and (int(flat.min()) < 0 or int(flat.max()) >= size):
        raise ValueError(f"{name}: {what} must be 0 to {size - 1}, got {int(flat.min())} to {int(flat.max())}.")
    return torch.zeros(size, dtype=torch.int64, device=flat.device).index_add_(0, flat, torch.ones_like(flat))


def check_at_least(value: int, least: int, name: str, what: str) -> int:
    """Return a whole number, refusing a smaller one.

    Args:
        value: The number.
        least: The smallest one allowed.
        name: What the error calls the metric.
        what: What it calls the number.

    Raises:
        ValueError: If it is smaller, or no whole number.
    """
    if int(value) != value or value < least:
        raise ValueError(f"{name}: {what} must be a whole number of at least {least}, got {value!r}.")
    return int(value)
