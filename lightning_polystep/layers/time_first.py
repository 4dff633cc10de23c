"""A layer that brings batches of sequences into the order in which spiking layers take them."""

from torch import Tensor, nn


class TimeFirst(nn.Module):
    """Turn inputs that change over time, ``(N, T, ...)`` as loaders stack them, into ``(T, N, features)``.

    Spiking layers have time first; all other dimensions of a sample become its features.

    Raises:
        ValueError: In forward, if the input has no dimension for time or none for features.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import TimeFirst
        >>> TimeFirst()(torch.zeros(5, 12, 2, 28, 28)).shape
        torch.Size([12, 5, 1568])
    """

    def forward(self, input: Tensor) -> Tensor:
        """Reorder.

        Args:
            input: ``(N, T, ...)``.

        Returns:
            ``(T, N, features)``.
        """
        if input.ndim < 3:
            raise ValueError(
                f"TimeFirst: inputs must be (N, T, ...) with at least one feature, got {tuple(input.shape)}."
            )
        return input.flatten(2).transpose(0, 1)
