"""Digits: pixels, shapes, and a split that is deterministic, disjoint and stratified."""

import pytest
import torch
from sklearn.datasets import load_digits

from datamodules import Digits


def ready(**options):
    data = Digits(**options)
    data.setup()
    return data


def parts(data):
    return data.train_set, data.val_set, data.test_set


def test_batches_are_floats_in_the_unit_interval():
    images, labels = next(iter(ready(batch_size=100).train_dataloader()))
    assert images.shape == (100, 1, 8, 8)
    assert images.dtype == torch.float32
    assert (images.min(), images.max()) == (0, 1)
    assert labels.dtype == torch.int64


def test_the_parts_are_the_whole_set_once():
    images = torch.cat([part.images for part in parts(ready())]).flatten(1) * 16
    labels = torch.cat([part.labels for part in parts(ready())])
    source = load_digits()
    found = sorted(map(tuple, torch.cat([images, labels[:, None]], 1).int().tolist()))
    expected = torch.cat([torch.from_numpy(source.data), torch.from_numpy(source.target)[:, None]], 1)
    assert found == sorted(map(tuple, expected.int().tolist()))


def test_the_split_is_stratified_and_of_the_size_asked_for():
    train, val, test = parts(ready(val_fraction=0.15, test_fraction=0.2))
    assert [len(part) for part in (train, val, test)] == [1167, 270, 360]
    whole = torch.from_numpy(load_digits().target).bincount() / 1797
    for part in (train, val, test):
        assert (part.labels.bincount() / len(part) - whole).abs().max() < 0.005


def test_the_split_follows_its_seed_alone():
    torch.manual_seed(1)
    first = ready(split_seed=3)
    torch.manual_seed(2)
    again, other = ready(split_seed=3), ready(split_seed=4)
    for same, different, part in zip(parts(again), parts(other), parts(first), strict=True):
        assert torch.equal(same.images, part.images)
        assert not torch.equal(different.images, part.images)


def test_loaders_serve_their_parts():
    data = ready(batch_size=500, drop_last=True)
    assert [len(labels) for _, labels in data.train_dataloader()] == [500, 500]
    assert [len(labels) for _, labels in data.val_dataloader()] == [270]
    for loader in (data.test_dataloader(), data.predict_dataloader()):
        assert torch.equal(next(iter(loader))[1], data.test_set.labels)


@pytest.mark.parametrize("options", [{"val_fraction": 0.0}, {"test_fraction": 1.0}])
def test_bad_fractions_are_refused_when_built(options):
    with pytest.raises(ValueError, match="strictly between 0 and 1"):
        Digits(**options)
