"""Every refusal of the data modules fires, and says what to do."""

import pytest
import torch

from datamodules.checks import check_files, check_fractions, check_images

SHAPE = {"image_shape": (1, 8, 8), "num_classes": 10}


def test_good_data_passes(tmp_path):
    (tmp_path / "there").touch()
    check_files(tmp_path, ["there"], "")
    check_fractions(val_fraction=0.5, test_fraction=0.49)
    check_images(torch.rand(2, 1, 8, 8), torch.tensor([0, 9]), **SHAPE)


@pytest.mark.parametrize("value", [0, 1, -0.1, 1.5, float("nan")])
def test_fractions_outside_the_open_interval(value):
    with pytest.raises(ValueError, match=r"^val_fraction must lie strictly between 0 and 1"):
        check_fractions(val_fraction=value)


def test_fractions_that_leave_nothing():
    with pytest.raises(ValueError, match=r"^val_fraction \+ test_fraction must stay below 1"):
        check_fractions(val_fraction=0.5, test_fraction=0.5)


def test_missing_files_are_named_with_the_remedy(tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(FileNotFoundError) as caught:
        check_files(tmp_path, ["there", "gone", "away"], "download them")
    assert str(caught.value) == f"gone, away not found in {tmp_path}: download them."


@pytest.mark.parametrize(
    ("message", "images", "labels"),
    [
        ("no images", torch.rand(0, 1, 8, 8), torch.zeros(0, dtype=torch.long)),
        (r"shape \(1, 8, 8\), got \(1, 8, 7\)", torch.rand(2, 1, 8, 7), torch.tensor([0, 1])),
        (r"shape \(1, 8, 8\), got \(8, 8\)", torch.rand(2, 8, 8), torch.tensor([0, 1])),
        ("one label for each of 2 images", torch.rand(2, 1, 8, 8), torch.tensor([0, 1, 2])),
        ("one label for each of 2 images", torch.rand(2, 1, 8, 8), torch.eye(2)),
        (r"0 \.\.\. 9, got 0 \.\.\. 10", torch.rand(2, 1, 8, 8), torch.tensor([0, 10])),
        (r"0 \.\.\. 9, got -1 \.\.\. 3", torch.rand(2, 1, 8, 8), torch.tensor([-1, 3])),
    ],
)
def test_bad_images_and_labels(message, images, labels):
    with pytest.raises(ValueError, match=message):
        check_images(images, labels, **SHAPE)
