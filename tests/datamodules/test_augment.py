"""Each image moves by whole pixels of its own, and nothing else happens to it."""

import pytest
import torch

from datamodules import Digits
from datamodules.augment import random_shifts


def _reference_shift(image, down, right):
    shifted = torch.zeros_like(image)
    height, width = image.shape[-2:]
    for row in range(height):
        for column in range(width):
            if 0 <= row + down < height and 0 <= column + right < width:
                shifted[..., row, column] = image[..., row + down, column + right]
    return shifted


@pytest.mark.parametrize("most", [0, 1, 3])
def test_every_image_is_shifted_whole(most):
    images = torch.rand(40, 2, 5, 7)
    shifted = random_shifts(images, most, torch.Generator().manual_seed(0))
    moves = [(down, right) for down in range(-most, most + 1) for right in range(-most, most + 1)]
    seen = set()
    for image, moved in zip(images, shifted, strict=True):
        fits = [move for move in moves if torch.equal(moved, _reference_shift(image, *move))]
        assert len(fits) == 1
        seen.update(fits)
    assert len(seen) > most  # each image has a shift of its own


class _Trainer:
    """What the data module asks a trainer for."""

    def __init__(self, training, batch):
        self.training = training
        self.fit_loop = type("FitLoop", (), {"epoch_loop": type("EpochLoop", (), {"total_batch_idx": batch})})


def test_shifts_are_a_function_of_seed_and_batch_and_for_training_alone():
    data = Digits(shift=1)
    data.setup()
    batch = data.train_set.images[:32], data.train_set.labels[:32]

    def moved(training, index):
        data.trainer = _Trainer(training, index)
        return data.on_after_batch_transfer(batch, 0)[0]

    assert torch.equal(moved(True, 3), moved(True, 3))
    assert not torch.equal(moved(True, 3), moved(True, 4))
    assert torch.equal(moved(False, 3), batch[0])


def test_negative_shift_is_refused():
    with pytest.raises(ValueError, match="shift"):
        Digits(shift=-1)
