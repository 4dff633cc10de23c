"""A sequence of layers that takes a large batch in slices."""

import math
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Rows:
    """Rows of a batch that come slice by slice, kept in memory that is reserved with the first of them.

    In memory of its own, what is kept of each slice would lie among the large tensors that a slice frees. The holes
    that these leave are then a little too small for those of the next slice, and the process grows with each.

    Args:
        count: Rows of all slices together.

    Example:
        >>> rows = Rows(3)
        >>> for part in torch.arange(3.0).split(2):
        ...     kept = rows.add(part)
        >>> rows.whole, kept
        (tensor([0., 1., 2.]), tensor([2.]))
    """

    def __init__(self, count: int) -> None:
        self.whole = torch.empty(0)
        self._count = count
        self._filled = 0

    @property
    def room(self) -> int:
        """Rows still to come."""
        return self._count - self._filled

    def add(self, part: Tensor) -> Tensor:
        """Copy the next rows, and return the copy."""
        if not self._filled:
            self.whole = part.new_empty(self._count, *part.shape[1:])
        kept = self.whole[self._filled : self._filled + len(part)].copy_(part)
        self._filled += len(part)
        return kept


class Sliced(nn.Sequential):
    """Run layers in order, on one slice of the batch after the other, so that memory does not grow with the batch.

    What layers hand to each other, a spike per time step for most of them, is then never held for more than a slice.
    That saves memory without autograd only; with it, all slices are kept for backward.

    The layers have to treat every sample for itself, which batch normalisation does not, and the batch has to be the
    first dimension of the input and of the output; in between, it may be anywhere. Slices of another size may round
    matrix products in another way, so results are the same up to that.

    Args:
        layers: As for ``nn.Sequential``.
        samples: At most so many samples per slice; None runs the batch whole.

    Raises:
        ValueError: If ``samples`` is below 1. In forward: if there is batch normalisation on the statistics of the
            batch, or the output has another number of samples than the input.

    Example:
        >>> from lightning_polystep.layers import LIF, SpikeCount
        >>> network = Sliced(LIF(beta=1.0, num_steps=5), SpikeCount(), samples=2)
        >>> network(torch.tensor([[0.25], [0.5], [1.0]]))
        tensor([[1.],
                [2.],
                [5.]])
    """

    def __init__(self, *layers: nn.Module, samples: int | None = None) -> None:
        super().__init__(*layers)
        if samples is not None and samples < 1:
            raise ValueError(f"Sliced: samples must be at least 1, or None for the whole batch, got {samples}.")
        self.samples = samples

    def forward(self, input: Tensor) -> Tensor:
        """Run the layers.

        Args:
            input: ``(N, ...)``.

        Returns:
            ``(N, ...)``.
        """
        if self.samples is not None:
            self._refuse_batch_statistics()  # also for a batch that fits: what is wrong should show at once
        size = self.slice_size(input)
        if size is None:
            return cast("Tensor", super().forward(input))
        parts = (self._run(part) for part in input.split(size))
        if torch.is_grad_enabled():
            return torch.cat(list(parts))
        rows = Rows(len(input))
        for part in parts:
            rows.add(part)
        return rows.whole

    def slice_size(self, input: Tensor) -> int | None:
        """Return how many samples a slice of a batch takes; None if the batch is run whole.

        Args:
            input: ``(N, ...)``.
        """
        if self.samples is None or len(input) <= self.samples:
            return None
        # Slices as even as can be: what is freed of one is then just right for the next.
        return math.ceil(len(input) / math.ceil(len(input) / self.samples))

    def extra_repr(self) -> str:
        """Show the size of a slice."""
        return f"samples={self.samples}"

    def _run(self, part: Tensor) -> Tensor:
        output = super().forward(part)
        if len(output) != len(part):
            raise ValueError(f"Sliced: {len(part)} samples became {len(output)}; the batch has to stay first.")
        return cast("Tensor", output)

    def _refuse_batch_statistics(self) -> None:
        for name, module in self.named_modules():
            if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None):
                raise ValueError(
                    f"Sliced: {name} ({type(module).__name__}) needs the statistics of the whole batch; "
                    "use GroupNorm, call .eval() on it, or set samples=None."
                )
