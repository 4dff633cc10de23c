"""Every refusal of the data modules, with its message."""

from collections.abc import Iterable
from pathlib import Path

from torch import Tensor


def check_fractions(**fractions: float) -> None:
    """Refuse shares of the data that leave some part of it empty.

    Args:
        fractions: Share of each held-out part, by the name of its argument.

    Raises:
        ValueError: If a share is not between 0 and 1, or together they leave nothing to train on.
    """
    for name, value in fractions.items():
        if not 0 < value < 1:
            raise ValueError(f"{name} must lie strictly between 0 and 1, got {value}.")
    if sum(fractions.values()) >= 1:
        raise ValueError(f"{' + '.join(fractions)} must stay below 1 to leave images to train on.")


def check_files(folder: Path, names: Iterable[str], remedy: str) -> None:
    """Refuse a folder that lacks files.

    Args:
        folder: Where the files should be.
        names: Their names.
        remedy: The end of a sentence that begins with what is missing.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    missing = [name for name in names if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"{', '.join(missing)} not found in {folder}: {remedy}.")


def check_images(images: Tensor, labels: Tensor, *, image_shape: tuple[int, ...], num_classes: int) -> None:
    """Refuse images and labels that a classifier would silently misread.

    Args:
        images: To be ``(N, *image_shape)`` with N at least 1.
        labels: To be ``(N,)`` with values in 0 ... ``num_classes`` - 1.
        image_shape: Shape of one image.
        num_classes: Number of classes.

    Raises:
        ValueError: If they are anything else.
    """
    if len(images) == 0:
        raise ValueError("The data set has no images: check the files it was read from.")
    if tuple(images.shape[1:]) != image_shape:
        raise ValueError(
            f"Images must have shape {image_shape}, got {tuple(images.shape[1:])}: check the files they were read from."
        )
    if tuple(labels.shape) != (len(images),):
        raise ValueError(f"Expected one label for each of {len(images)} images, got shape {tuple(labels.shape)}.")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"Labels must lie in 0 ... {num_classes - 1}, got {low} ... {high}: check the label file.")
