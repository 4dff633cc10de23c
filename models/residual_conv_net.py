"""A deeper convolutional network of hard activations, with batch normalisation and a residual block."""

from collections.abc import Sequence

from torch import Tensor, nn

from lightning_polystep.layers import Staircase

_POOL = 2
_POOLINGS = 3
_KERNEL = 3


class ResidualBlock(nn.Module):
    r"""Two convolutions whose result is added to what went in.

    .. math:: y = s(x + n_2(C_2\, s(n_1(C_1 x))))

    with C convolutions, n batch normalisation and s a staircase.

    Args:
        channels: Of what goes in and comes out.

    Example:
        >>> import torch
        >>> from models.residual_conv_net import ResidualBlock
        >>> ResidualBlock(4)(torch.rand(2, 4, 6, 6)).shape
        torch.Size([2, 4, 6, 6])
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = normalised(channels, channels)
        self.hidden = Staircase()
        self.second = normalised(channels, channels)
        self.out = Staircase()

    def forward(self, x: Tensor) -> Tensor:
        """Return y, shape (N, channels, H, W)."""
        y: Tensor = self.out(x + self.second(self.hidden(self.first(x))))
        return y


class ResidualConvNet(nn.Sequential):
    """Four convolutions with batch normalisation and five-level staircases, two of them a residual block.

    C3-P2-[C3-C3]-P2-2C3-P2 and a linear layer on what is left; all but that layer has no gradient.

    Args:
        image_shape: Channels, height and width.
        channels: Of all convolutions but the last one, which has twice as many.
        num_classes: Number of classes.

    Raises:
        ValueError: If ``channels`` is below 1, or the image is too small for three poolings.

    Example:
        >>> import torch
        >>> from models import ResidualConvNet
        >>> ResidualConvNet()(torch.rand(2, 1, 28, 28)).shape
        torch.Size([2, 10])

    Source:
        Blocks are those of He et al. 2016, *Deep residual learning for image recognition*, without a gradient here.
    """

    def __init__(self, image_shape: Sequence[int] = (1, 28, 28), channels: int = 16, num_classes: int = 10) -> None:
        if channels < 1:
            raise ValueError(f"ResidualConvNet: channels must be at least 1, got {channels}.")
        colours, *sides = image_shape
        height, width = (side // _POOL**_POOLINGS for side in sides)
        if height * width == 0:
            raise ValueError(f"ResidualConvNet: images of {tuple(image_shape)} are too small for three poolings.")
        super().__init__(
            normalised(colours, channels),
            Staircase(),
            nn.MaxPool2d(_POOL),
            ResidualBlock(channels),
            nn.MaxPool2d(_POOL),
            normalised(channels, 2 * channels),
            Staircase(),
            nn.MaxPool2d(_POOL),
            nn.Flatten(),
            nn.Linear(2 * channels * height * width, num_classes),
        )


def normalised(channels: int, filters: int) -> nn.Sequential:
    """Return a convolution that keeps the size of images, and the normalisation of what it makes.

    Args:
        channels: Of what goes in.
        filters: Of what comes out.
    """
    convolution = nn.Conv2d(channels, filters, _KERNEL, padding=_KERNEL // 2, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(filters))
