"""Scikit-learn's handwritten digits: small enough to train on in seconds, and never downloaded."""

from typing import ClassVar

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from datamodules.checks import check_fractions, check_images
from datamodules.images import ImageDataModule
from datamodules.tensors import TensorImages


class Digits(ImageDataModule):
    """1797 images of shape (1, 8, 8) with pixels in [0, 1], split so that each part has the same mix of classes.

    Args:
        val_fraction: Share of the images held out for validation.
        test_fraction: Share of the images held out for testing.
        split_seed: Decides, alone, which image is in which part.
        batch_size: Images per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.
        shift: Pixels by which training images are moved at random, at the most.

    Raises:
        ValueError: If the fractions leave a part empty.

    Example:
        >>> from datamodules import Digits
        >>> data = Digits()
        >>> data.setup()
        >>> len(data.train_set), len(data.val_set), len(data.test_set)
        (1167, 270, 360)
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 8, 8)
    num_classes: ClassVar[int] = 10

    def __init__(
        self,
        val_fraction: float = 0.15,
        test_fraction: float = 0.2,
        split_seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        drop_last: bool = False,
        shift: int = 0,
    ) -> None:
        check_fractions(val_fraction=val_fraction, test_fraction=test_fraction)
        super().__init__(batch_size, num_workers, drop_last, shift)
        self.val_fraction = val_fraction
        self.test_fraction = test_fraction
        self.split_seed = split_seed

    def setup(self, stage: str | None = None) -> None:
        """Load and split; the data is so small that every stage gets all of it."""
        source = load_digits()
        darkest = 16
        images = torch.from_numpy(source.images).float().div(darkest).unsqueeze(1)
        labels = torch.from_numpy(source.target).long()
        check_images(images, labels, image_shape=self.image_shape, num_classes=self.num_classes)
        rest, test = self._split(torch.arange(len(labels)), labels, self.test_fraction)
        train, val = self._split(rest, labels, self.val_fraction / (1 - self.test_fraction))
        self.train_set, self.val_set, self.test_set = (
            TensorImages(images[part], labels[part]) for part in (train, val, test)
        )

    def _split(self, indices: Tensor, labels: Tensor, fraction: float) -> tuple[Tensor, Tensor]:
        kept, held_out = train_test_split(
            indices, test_size=fraction, stratify=labels[indices], random_state=self.split_seed
        )
        return kept, held_out
