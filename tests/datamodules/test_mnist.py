"""MNIST: the real files where they are, and small or broken ones in their layout for everything else."""

import pytest
import torch

from datamodules import MNIST
from tests.helpers.mnist_files import write_mnist


def test_real_mnist(data_root):
    data = MNIST(data_root, batch_size=1000)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [54_000, 6_000, 10_000]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (1000, 1, 28, 28)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.val_set.labels.bincount(minlength=10).min() > 400


def test_validation_images_are_not_trained_on(tmp_path):
    data = MNIST(write_mnist(tmp_path), val_fraction=0.2)
    data.setup("fit")
    train, val = ({tuple(image.flatten().tolist()) for image in part.images} for part in (data.train_set, data.val_set))
    assert (len(train), len(val), len(train & val)) == (40, 10, 0)


def test_the_split_follows_its_seed_alone(tmp_path):
    def split(seed):
        data = MNIST(tmp_path, split_seed=seed)
        data.setup("fit")
        return data.val_set.images

    write_mnist(tmp_path)
    first = split(3)
    torch.manual_seed(1)
    assert torch.equal(split(3), first)
    assert not torch.equal(split(4), first)


@pytest.mark.parametrize(
    ("stage", "loaded"),
    [
        ("fit", {"train_set", "val_set"}),
        ("validate", {"train_set", "val_set"}),
        ("test", {"test_set"}),
        ("predict", {"test_set"}),
        (None, {"train_set", "val_set", "test_set"}),
    ],
)
def test_a_stage_reads_what_it_needs(tmp_path, stage, loaded):
    data = MNIST(write_mnist(tmp_path))
    data.setup(stage)
    assert {name for name in ("train_set", "val_set", "test_set") if hasattr(data, name)} == loaded


def test_missing_files_are_named_with_the_remedy(tmp_path):
    (write_mnist(tmp_path) / "MNIST" / "raw" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(FileNotFoundError, match=r"^t10k-labels-idx1-ubyte not found.*pass download=True.*torchvision"):
        MNIST(tmp_path).setup("fit")


def test_nothing_is_downloaded_unless_asked_for(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torchvision.datasets.MNIST", lambda root, **options: asked.append((root, options)))
    MNIST(tmp_path).prepare_data()
    assert asked == []
    MNIST(tmp_path, download=True).prepare_data()
    assert asked == [(str(tmp_path), {"download": True})]


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ({"size": 27}, r"shape \(1, 28, 28\), got \(1, 27, 27\)"),
        ({"top_label": 10}, r"0 \.\.\. 9, got 0 \.\.\. 10"),
        ({"train": 0}, "cut short or not MNIST's: delete it"),
    ],
)
def test_broken_files_are_refused(tmp_path, flaw, message):
    with pytest.raises(ValueError, match=message):
        MNIST(write_mnist(tmp_path, **flaw)).setup("fit")


@pytest.mark.parametrize("kept", [0, 10, 5000])
def test_a_file_cut_short_is_refused(tmp_path, kept):
    images = write_mnist(tmp_path) / "MNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(images.read_bytes()[:kept])
    with pytest.raises(ValueError, match="cut short or not MNIST's: delete it"):
        MNIST(tmp_path).setup("fit")


def test_a_file_of_something_else_is_refused(tmp_path):
    (write_mnist(tmp_path) / "MNIST" / "raw" / "train-images-idx3-ubyte").write_bytes(b"<html>404 Not Found</html>")
    with pytest.raises(ValueError, match="cut short or not MNIST's: delete it"):
        MNIST(tmp_path).setup("fit")


def test_bad_fractions_are_refused_when_built(tmp_path):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        MNIST(tmp_path, val_fraction=1.0)
