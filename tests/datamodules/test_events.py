"""MNIST as events: what a batch holds, that it repeats, shifts, and what is refused."""

import pytest
import torch

from datamodules import MNIST, MNISTEvents
from datamodules.saccades import saccade_events
from tests.helpers.mnist_files import write_mnist


def test_real_digits_have_a_sensible_number_of_events(data_root):
    data = MNISTEvents(data_root, batch_size=200)
    data.setup("test")
    events, labels = next(iter(data.test_dataloader()))
    assert events.shape == (200, 12, 2, 14, 14)
    assert events.dtype == torch.float32
    assert labels[:5].tolist() == [7, 2, 1, 0, 4]
    rate = events.mean((0, 3, 4))
    assert rate.min() > 0.03
    assert rate.max() < 0.2


def test_a_batch_is_what_the_camera_makes_of_the_images(tmp_path):
    events = MNISTEvents(write_mnist(tmp_path), num_steps=3, amplitude=2.0, contrast=0.8, pixel=4, batch_size=7)
    images = MNIST(tmp_path, batch_size=7)
    for data in (events, images):
        data.setup()
    for name in ("val_dataloader", "test_dataloader"):
        (sample, label), (image, same) = (next(iter(getattr(data, name)())) for data in (events, images))
        assert torch.equal(sample, saccade_events(image, 3, amplitude=2.0, contrast=0.8, pixel=4))
        assert torch.equal(label, same)
    assert torch.equal(events.val_set[2][0], events.val_set.__getitems__([0, 2])[0][1])


def test_a_stage_reads_what_it_needs(tmp_path):
    data = MNISTEvents(write_mnist(tmp_path))
    data.setup("test")
    assert not hasattr(data, "train_set")


@pytest.mark.parametrize("pixel", [0, 3, 5])
def test_pixels_have_to_tile_the_image(tmp_path, pixel):
    with pytest.raises(ValueError, match="pixel must"):
        MNISTEvents(tmp_path, pixel=pixel)


def test_a_camera_at_rest_is_refused_when_built(tmp_path):
    with pytest.raises(ValueError, match="sees no events"):
        MNISTEvents(tmp_path, amplitude=0)
