"""Three sets in memory: how they are served."""

import torch

from datamodules.in_memory import InMemoryDataModule
from datamodules.tensors import TensorImages


def module(**options):
    data = InMemoryDataModule(batch_size=4, **options)
    data.train_set, data.val_set, data.test_set = (
        TensorImages(torch.arange(size), torch.arange(size)) for size in (10, 6, 5)
    )
    return data


def test_training_is_shuffled_and_the_rest_in_order():
    data = module()
    train = torch.cat([images for images, _ in data.train_dataloader()])
    assert sorted(train.tolist()) == list(range(10))
    assert train.tolist() != list(range(10))
    for loader, size in ((data.val_dataloader(), 6), (data.test_dataloader(), 5), (data.predict_dataloader(), 5)):
        assert torch.cat([images for images, _ in loader]).tolist() == list(range(size))


def test_a_last_batch_is_left_out_of_training_alone():
    data = module(drop_last=True)
    assert [len(labels) for _, labels in data.train_dataloader()] == [4, 4]
    assert [len(labels) for _, labels in data.val_dataloader()] == [4, 2]
