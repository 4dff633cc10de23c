"""Fashion-MNIST: articles of clothing in the place of MNIST's digits, in files of the same layout."""

from typing import ClassVar

from datamodules.mnist import MNIST


class FashionMNIST(MNIST):
    """Images of shape (1, 28, 28) with pixels in [0, 1] of ten articles of clothing, as :class:`MNIST` serves digits.

    Args:
        root: Folder that holds ``FashionMNIST/raw``, as torchvision lays it out.
        download: Whether to download what is missing.
        val_fraction: Share of the 60,000 training images held out; the 10,000 test images are the official ones.
        split_seed: Decides, alone, which of them.
        batch_size: Images per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.
        shift: Pixels by which training images are moved at random, at the most.

    Raises:
        ValueError: If ``val_fraction`` leaves a part empty.

    References:
        Xiao, Rasul and Vollgraf 2017, "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning
        Algorithms", arXiv 1708.07747.
    """

    source: ClassVar[str] = "FashionMNIST"
