"""What the networks of users are trained on, as plain tensors that a process of any version can read."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from datamodules import MNIST, FashionMNIST

Splits = dict[str, tuple[Tensor, Tensor]]

_VALIDATED = 2000
_IMAGES = {"mnist": MNIST, "fashion": FashionMNIST}


def source(data: str, options: argparse.Namespace) -> str:
    """Return what the samples are, for the record."""
    if data not in _IMAGES:
        return data
    name = _IMAGES[data].__name__
    if options.quick:
        return "random noise, because of --quick"
    if not (options.data_root / name / "raw").is_dir():
        return f"random noise, because {name} is not in --data-root"
    return name


def splits(data: str, options: argparse.Namespace) -> Splits:
    """Return the samples of a network: images, or noise of their shape where they are not there."""
    if data not in _IMAGES:
        return wine()
    if source(data, options) != _IMAGES[data].__name__:
        draw = torch.Generator().manual_seed(options.seed)
        noise = torch.rand(256, 1, 28, 28, generator=draw), torch.randint(10, (256,), generator=draw)
        return dict.fromkeys(("train", "val", "test"), noise)
    module = _IMAGES[data](options.data_root)
    module.setup()
    val = module.val_set.images[:_VALIDATED].clone(), module.val_set.labels[:_VALIDATED].clone()
    parts = {"train": module.train_set, "test": module.test_set}
    return {"val": val, **{name: (part.images, part.labels) for name, part in parts.items()}}


def wine() -> Splits:
    """Return 178 wines, their 13 measurements standardised by those that are trained on."""
    from sklearn.datasets import load_wine  # noqa: PLC0415 - one network needs it

    inputs, labels = (torch.as_tensor(values) for values in load_wine(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train = inputs[order[:106]]
    inputs = ((inputs - train.mean(0)) / train.std(0)).float()
    parts = zip(("train", "val", "test"), order.split([106, 36, 36]), strict=True)
    return {name: (inputs[part], labels[part]) for name, part in parts}
