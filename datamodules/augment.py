"""Small random shifts of images: the augmentation that handwriting allows."""

import torch
from torch import Tensor
from torch.nn import functional


def random_shifts(images: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """Move each image by its own random number of whole pixels, and fill with zeros.

    Args:
        images: Shape (N, ..., H, W); what is between belongs to one image and is moved alike.
        most: Pixels at the most in each direction, at least 0.
        generator: Source of randomness, on the CPU.

    Returns:
        Shape and dtype of ``images``.

    Example:
        >>> images = torch.ones(1, 1, 2, 2)
        >>> bool((random_shifts(images, 0, torch.Generator()) == images).all())
        True
    """
    samples, *_, height, width = images.shape
    down, right = torch.randint(0, 2 * most + 1, (2, samples, 1), generator=generator).to(images.device)
    rows = down + torch.arange(height, device=images.device)
    columns = right + torch.arange(width, device=images.device)
    padded = functional.pad(images, (most, most, most, most)).flatten(1, -3)
    sample = torch.arange(samples, device=images.device)[:, None, None, None]
    channel = torch.arange(padded.shape[1], device=images.device)[:, None, None]
    return padded[sample, channel, rows[:, None, :, None], columns[:, None, None, :]].reshape(images.shape)
