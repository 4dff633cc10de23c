"""Torch raises what the table expects, and what to do stands below it."""

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.mistakes import cure_of, with_cures

X, Y = torch.randn(16, 4), torch.tensor([0, 1] * 8)
SPIKING = [nn.Linear(4, 2), LIF(0.9, num_steps=5)]

MISTAKES = {
    "size": (nn.Linear(5, 2), X, Y, "A layer takes 5 numbers and is given 4: "),
    "channels": (nn.Conv2d(3, 2, 1), torch.randn(2, 1, 4, 4), Y, "A convolution takes 3 channels and is given 1: "),
    "label too large": (nn.Linear(4, 2), X, Y + 5, "A label is [56], and the network does not score so many classes"),
    "label below 0": (nn.Linear(4, 2), X, Y - 1, "A label is -1, and the network"),
    "labels of floats": (nn.Linear(4, 2), X, Y.float(), r"Labels of classes are whole numbers.*: pass on y.long\(\)"),
    "inputs of doubles": (
        nn.Linear(4, 2),
        X.double(),
        Y,
        "weights are Float and it is given Double: convert the inputs",
    ),
    "a column of labels": (nn.Linear(4, 2), X, Y[:, None], r"Labels have an axis too many: pass on y.squeeze\(1\)"),
    "one-hot labels": (nn.Linear(4, 2), X, nn.functional.one_hot(Y), r"pass on y.argmax\(1\), or y.float\(\)"),
    "no readout": (nn.Sequential(*SPIKING), X, Y, "There are 16 labels and 5 rows of scores: .* such as SpikeCount"),
    "no num_steps": (
        nn.Sequential(nn.Linear(4, 2), LIF(0.9), SpikeCount()),
        X,
        Y,
        "There are 16 labels, and .* give the first one num_steps",
    ),
    "a batch of one": (
        nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)),
        X[:1],
        Y[:1],
        "Batch normalisation needs more than one sample",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_step_says_what_to_do_below_what_torch_says(mistake):
    network, x, y, cure = MISTAKES[mistake]
    engine = Engine(network, PolyStep(network.parameters()), announce=None)
    with pytest.raises((RuntimeError, ValueError, IndexError)) as raised:
        engine.step(lambda: cross_entropy(network(x), y))
    [note] = raised.value.__notes__
    assert raised.match(cure)
    assert note == cure_of(raised.value)


def test_autograd_is_told_of():
    network = nn.Linear(4, 2)

    def closure():
        loss = network(X).square().mean()
        loss.backward()
        return loss

    with pytest.raises(RuntimeError, match=r"leave out loss\.backward"):
        Engine(network, PolyStep(network.parameters()), announce=None).step(closure)


def test_other_errors_are_left_alone():
    with pytest.raises(ValueError, match=r"^something else$") as raised, with_cures():
        raise ValueError("something else")
    assert not hasattr(raised.value, "__notes__")
