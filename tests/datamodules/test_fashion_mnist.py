"""Fashion-MNIST: what differs from MNIST, whose tests are next door."""

import pytest
import torch

from datamodules import MNIST, FashionMNIST
from tests.helpers.mnist_files import write_mnist


def test_real_fashion_mnist(data_root):
    if not (data_root / "FashionMNIST" / "raw").is_dir():
        pytest.skip(f"FashionMNIST is not in {data_root}")
    data = FashionMNIST(data_root, batch_size=1000)
    data.setup()
    assert [len(part) for part in (data.train_set, data.val_set, data.test_set)] == [54_000, 6_000, 10_000]
    images, labels = next(iter(data.test_dataloader()))
    assert images.shape == (1000, 1, 28, 28)
    assert (images.min(), images.max()) == (0, 1)
    assert labels[:10].tolist() == [9, 2, 1, 1, 6, 1, 4, 6, 5, 7]


def test_it_reads_its_own_folder(tmp_path):
    write_mnist(tmp_path, folder="MNIST")
    write_mnist(tmp_path, folder="FashionMNIST")
    clothes, digits = FashionMNIST(tmp_path), MNIST(tmp_path)
    clothes.setup("test")
    digits.setup("test")
    assert not torch.equal(clothes.test_set.images, digits.test_set.images)


def test_missing_files_are_named_with_its_remedy(tmp_path):
    write_mnist(tmp_path, folder="MNIST")
    with pytest.raises(FileNotFoundError, match=r"not found in .*FashionMNIST.*torchvision\.datasets\.FashionMNIST\("):
        FashionMNIST(tmp_path).setup("fit")


def test_a_broken_file_is_called_its_own(tmp_path):
    images = write_mnist(tmp_path, folder="FashionMNIST") / "FashionMNIST" / "raw" / "train-images-idx3-ubyte"
    images.write_bytes(b"<html>404 Not Found</html>")
    with pytest.raises(ValueError, match="not FashionMNIST's: delete it"):
        FashionMNIST(tmp_path).setup("fit")


def test_it_is_downloaded_as_itself(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("torchvision.datasets.FashionMNIST", lambda root, **options: asked.append((root, options)))
    FashionMNIST(tmp_path, download=True).prepare_data()
    assert asked == [(str(tmp_path), {"download": True})]
