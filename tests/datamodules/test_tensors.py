"""Batches gathered at once are those that the usual one-by-one way would give."""

import pytest
import torch
from torch.utils.data import DataLoader, DistributedSampler, Subset

from datamodules import TensorImages


@pytest.fixture
def dataset():
    return TensorImages(torch.rand(23, 1, 4, 4), torch.arange(23))


def test_batches_equal_those_of_single_items(dataset):
    one_by_one = DataLoader([dataset[index] for index in range(23)], 5)
    for (images, labels), (expected_images, expected_labels) in zip(dataset.loader(5), one_by_one, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


def test_shuffling_keeps_every_pair_and_follows_the_global_seed(dataset):
    def epoch():
        batches = list(dataset.loader(5, shuffle=True))
        return torch.cat([images for images, _ in batches]), torch.cat([labels for _, labels in batches])

    torch.manual_seed(1)
    images, labels = epoch()
    assert labels.tolist() != list(range(23))
    assert labels.sort().values.tolist() == list(range(23))
    assert torch.equal(images, dataset.images[labels])
    torch.manual_seed(1)
    assert torch.equal(epoch()[1], labels)


def test_the_last_batch_may_be_dropped(dataset):
    assert [len(labels) for _, labels in dataset.loader(5)] == [5, 5, 5, 5, 3]
    assert [len(labels) for _, labels in dataset.loader(5, drop_last=True)] == [5, 5, 5, 5]


def test_dropping_every_batch_is_refused(dataset):
    assert len(dataset.loader(23, drop_last=True)) == 1
    with pytest.raises(ValueError, match="lower batch_size"):
        dataset.loader(24, drop_last=True)


def test_works_with_a_distributed_sampler_and_a_subset(dataset):
    loader = dataset.loader(4)
    seen = []
    for rank in range(2):
        sampler = DistributedSampler(dataset, num_replicas=2, rank=rank, shuffle=False)
        # As Lightning rebuilds a loader for several processes.
        rebuilt = DataLoader(loader.dataset, loader.batch_size, sampler=sampler, collate_fn=loader.collate_fn)
        seen += [label for _, labels in rebuilt for label in labels.tolist()]
    assert sorted(set(seen)) == list(range(23))
    part = DataLoader(Subset(dataset, [7, 3]), 2, collate_fn=loader.collate_fn)
    assert next(iter(part))[1].tolist() == [7, 3]


def test_workers_give_the_same_batches(dataset):
    alone, helped = ([labels.tolist() for _, labels in dataset.loader(5, num_workers=workers)] for workers in (0, 1))
    assert helped == alone
