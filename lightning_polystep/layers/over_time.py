"""Layers for images in a network of spikes, and the mean of what they give over time."""

from torch import Tensor, nn


class OverTime(nn.Module):
    """Apply a layer for images to every time step, ``(T, N, C, H, W)`` to ``(T, N, C, H, W)`` of its own.

    Args:
        layer: Takes ``(N, C, H, W)`` and treats each sample for itself.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import OverTime
        >>> OverTime(torch.nn.MaxPool2d(2))(torch.ones(3, 5, 1, 4, 4)).shape
        torch.Size([3, 5, 1, 2, 2])
    """

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, spikes: Tensor) -> Tensor:
        """Apply it once, to all steps as if they were samples."""
        output: Tensor = self.layer(spikes.flatten(0, 1))
        return output.unflatten(0, spikes.shape[:2])


class MeanOverTime(nn.Module):
    """Take the mean over the first dimension, that of time, and flatten each sample.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import MeanOverTime
        >>> MeanOverTime()(torch.ones(3, 5, 1, 4, 4)).shape
        torch.Size([5, 16])
    """

    def forward(self, spikes: Tensor) -> Tensor:
        """Average, ``(T, N, ...)`` to ``(N, features)``."""
        return spikes.mean(0).flatten(1)
