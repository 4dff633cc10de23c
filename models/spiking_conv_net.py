"""A small convolutional network of hard spiking neurons."""

from collections.abc import Sequence

from torch import nn

from lightning_polystep.layers import LIF, MeanOverTime, OverTime
from models.initialisation import PIXELS, unit_preactivations_
from models.sizes import check_two

# Of ones and zeros: how often one of four pooled neurons fires at first, on MNIST.
_POOLED = 0.3
# Of their means over time.
_RATES = 0.2
_POOL = 2


class SpikingConvNet(nn.Sequential):
    """Two convolutions, each with hard LIF neurons and a max-pooling of spikes, and a linear layer on their rates.

    The first convolution sees the image unchanged at every step. All but the last layer has no gradient.

    Args:
        image_shape: Channels, height and width.
        channels: Of the two convolutions.
        kernel_sizes: Of the two convolutions.
        stride: Of the first convolution.
        padded: Whether zeros around the images keep their size through a convolution of stride 1.
        num_classes: Number of classes.
        num_steps: Time steps.
        beta: Share of the membrane kept per step.
        threshold: Membrane at which a neuron fires.

    Raises:
        ValueError: If ``channels`` or ``kernel_sizes`` are not two, or the image is too small for two poolings.

    Example:
        >>> import torch
        >>> from models import SpikingConvNet
        >>> SpikingConvNet()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        Eshraghian et al. 2023, *Training spiking neural networks using lessons from deep learning*, has a network of
        this kind; here without a surrogate gradient.
    """

    def __init__(  # noqa: PLR0913 - options, each with a default
        self,
        image_shape: Sequence[int] = (1, 28, 28),
        channels: Sequence[int] = (4, 8),
        *,
        kernel_sizes: Sequence[int] = (5, 3),
        stride: int = 2,
        padded: bool = True,
        num_classes: int = 10,
        num_steps: int = 4,
        beta: float = 0.9,
        threshold: float = 1.0,
    ) -> None:
        for name, sizes in (("channels", channels), ("kernel_sizes", kernel_sizes)):
            check_two(sizes, f"SpikingConvNet: {name}")
        colours, *sides = image_shape
        padding = [size // 2 if padded else 0 for size in kernel_sizes]
        first = nn.Conv2d(colours, channels[0], kernel_sizes[0], stride=stride, padding=padding[0])
        second = nn.Conv2d(channels[0], channels[1], kernel_sizes[1], padding=padding[1])
        for size, by, wide in zip(kernel_sizes, (stride, 1), padding, strict=True):
            sides = [max(0, (side + 2 * wide - size) // by + 1) // _POOL for side in sides]
        height, width = sides
        if height * width == 0:
            raise ValueError(f"SpikingConvNet: images of {tuple(image_shape)} are too small for two poolings.")
        scores = nn.Linear(channels[1] * height * width, num_classes)
        super().__init__(
            unit_preactivations_(first, PIXELS),
            LIF(beta, threshold, num_steps=num_steps),
            OverTime(nn.MaxPool2d(_POOL)),
            OverTime(unit_preactivations_(second, _POOLED)),
            LIF(beta, threshold),
            OverTime(nn.MaxPool2d(_POOL)),
            MeanOverTime(),
            unit_preactivations_(scores, _RATES),
        )
