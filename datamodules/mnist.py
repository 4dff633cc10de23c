"""MNIST with a real validation set."""

from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor
from torchvision import datasets

from datamodules.checks import check_files, check_fractions, check_images
from datamodules.images import ImageDataModule
from datamodules.tensors import TensorImages

_FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


class MNIST(ImageDataModule):
    """Images of shape (1, 28, 28) with pixels in [0, 1], some of the official training images held out for validation.

    Args:
        root: Folder that holds ``MNIST/raw``, as torchvision lays it out.
        download: Whether to download what is missing.
        val_fraction: Share of the 60,000 training images held out; the 10,000 test images are the official ones.
        split_seed: Decides, alone, which of them.
        batch_size: Images per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.
        shift: Pixels by which training images are moved at random, at the most.

    Raises:
        ValueError: If ``val_fraction`` leaves a part empty.
    """

    image_shape: ClassVar[tuple[int, int, int]] = (1, 28, 28)
    num_classes: ClassVar[int] = 10
    # The name of torchvision's class, which is that of the folder too: others publish files of the same layout.
    source: ClassVar[str] = "MNIST"

    def __init__(
        self,
        root: str | Path,
        download: bool = False,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        drop_last: bool = False,
        shift: int = 0,
    ) -> None:
        check_fractions(val_fraction=val_fraction)
        super().__init__(batch_size, num_workers, drop_last, shift)
        self.root = Path(root)
        self.download = download
        self.val_fraction = val_fraction
        self.split_seed = split_seed

    def prepare_data(self) -> None:
        """Download if asked to; Lightning calls this in one process per machine."""
        if self.download:
            getattr(datasets, self.source)(str(self.root), download=True)

    def setup(self, stage: str | None = None) -> None:
        """Read the files that ``stage`` needs; all of them for None."""
        check_files(
            self._folder,
            _FILES,
            remedy="pass download=True (on the command line --data.download true), or call "
            f"torchvision.datasets.{self.source}({str(self.root)!r}, download=True) once",
        )
        if stage in (None, "fit", "validate"):
            images, labels = self._read(train=True)
            order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.split_seed))
            val, train = order.tensor_split([round(self.val_fraction * len(labels))])
            self.train_set, self.val_set = _scaled(images[train], labels[train]), _scaled(images[val], labels[val])
        if stage in (None, "test", "predict"):
            self.test_set = _scaled(*self._read(train=False))

    @property
    def _folder(self) -> Path:
        return self.root / self.source / "raw"

    def _read(self, *, train: bool) -> tuple[Tensor, Tensor]:
        try:
            source = getattr(datasets, self.source)(str(self.root), train=train)
        except (AssertionError, KeyError, RuntimeError, ValueError) as error:  # torchvision, of a broken file
            raise ValueError(
                f"{self._folder} holds a file that is cut short or not {self.source}'s: delete it, then pass "
                "download=True."
            ) from error
        images, labels = source.data.unsqueeze(1), source.targets
        check_images(images, labels, image_shape=self.image_shape, num_classes=self.num_classes)
        return images, labels


def _scaled(pixels: Tensor, labels: Tensor) -> TensorImages:
    brightest = 255
    return TensorImages(pixels.float().div(brightest), labels)
