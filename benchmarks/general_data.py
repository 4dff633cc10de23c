"""What the networks of users are trained on, as plain tensors that a process of any version can read."""

from __future__ import annotations

import argparse

import torch
from torch import Tensor

from datamodules import MNIST

Splits = dict[str, tuple[Tensor, Tensor]]

_VALIDATED = 2000


def source(data: str, options: argparse.Namespace) -> str:
    """Return what the samples are, for the record."""
    if data == "mnist" and options.quick:
        return "random noise, because of --quick"
    if data == "mnist" and not (options.data_root / "MNIST" / "raw").is_dir():
        return "random noise, because MNIST is not in --data-root"
    return {"mnist": "MNIST"}.get(data, data)


def images(options: argparse.Namespace) -> Splits:
    """Return MNIST, or noise of its shape."""
    if source("mnist", options) != "MNIST":
        draw = torch.Generator().manual_seed(options.seed)
        noise = torch.rand(256, 1, 28, 28, generator=draw), torch.randint(10, (256,), generator=draw)
        return dict.fromkeys(("train", "val", "test"), noise)
    data = MNIST(options.data_root)
    data.setup()
    val = data.val_set.images[:_VALIDATED].clone(), data.val_set.labels[:_VALIDATED].clone()
    splits = {"train": data.train_set, "test": data.test_set}
    return {"val": val, **{name: (split.images, split.labels) for name, split in splits.items()}}


def wine() -> Splits:
    """Return 178 wines, their 13 measurements standardised by those that are trained on."""
    from sklearn.datasets import load_wine  # noqa: PLC0415 - one network needs it

    inputs, labels = (torch.as_tensor(values) for values in load_wine(return_X_y=True))
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    train = inputs[order[:106]]
    inputs = ((inputs - train.mean(0)) / train.std(0)).float()
    parts = zip(("train", "val", "test"), order.split([106, 36, 36]), strict=True)
    return {name: (inputs[part], labels[part]) for name, part in parts}
