"""MNIST as an event camera sees it."""

from functools import partial
from pathlib import Path

from datamodules.mnist import MNIST
from datamodules.saccades import check_saccades, saccade_events


class MNISTEvents(MNIST):
    """MNIST's digits as ON and OFF events of a camera on three saccades, in the manner of N-MNIST.

    Samples have shape (T, 2, 28 / pixel, 28 / pixel), zeros and ones; a batch of them is made when it is asked for
    (:func:`~datamodules.saccades.saccade_events`), and is the same each time. Splits and labels are those of
    :class:`~datamodules.MNIST`.

    Args:
        root: Folder that holds ``MNIST/raw``, as torchvision lays it out.
        download: Whether to download what is missing.
        num_steps: Time bins T.
        amplitude: Pixels of the image between the corners of the saccades' path.
        contrast: Change of the logarithm of brightness per event.
        pixel: Side of the camera's pixels in those of the image, a divisor of 28.
        val_fraction: Share of the 60,000 training images held out; the 10,000 test images are the official ones.
        split_seed: Decides, alone, which of them.
        batch_size: Samples per batch.
        num_workers: Processes that fetch.
        drop_last: Whether a last training batch that is not full is left out.
        shift: Of the camera's pixels, by which training samples are moved at random, at the most.

    Raises:
        ValueError: If ``val_fraction`` leaves a part empty or a value is out of its range.

    Source:
        Orchard et al. 2015, arXiv 1507.07629, who moved a real camera; here its events are computed from the images.
    """

    def __init__(  # noqa: PLR0913 - each option has a default
        self,
        root: str | Path,
        download: bool = False,
        *,
        num_steps: int = 12,
        amplitude: float = 4.0,
        contrast: float = 0.4,
        pixel: int = 2,
        val_fraction: float = 0.1,
        split_seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        drop_last: bool = False,
        shift: int = 0,
    ) -> None:
        super().__init__(root, download, val_fraction, split_seed, batch_size, num_workers, drop_last, shift)
        check_saccades(num_steps, amplitude, contrast, pixel)
        if self.image_shape[-1] % pixel:
            raise ValueError(f"pixel must divide {self.image_shape[-1]}, got {pixel}.")
        self.camera = partial(saccade_events, num_steps=num_steps, amplitude=amplitude, contrast=contrast, pixel=pixel)

    def setup(self, stage: str | None = None) -> None:
        """Read the files that ``stage`` needs; all of them for None."""
        super().setup(stage)
        for name in ("train_set", "val_set", "test_set"):
            if hasattr(self, name):
                getattr(self, name).transform = self.camera
