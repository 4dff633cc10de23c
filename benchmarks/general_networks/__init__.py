"""Networks as their authors write them: nothing of them comes from this project, and nothing is marked for it.

One module for each library that they need, imported only when one of its networks is asked for.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network, not yet trained, and what its author does with it.

    Args:
        network: The module.
        loss: From inputs and labels to the loss that is trained.
        predict: From inputs to classes.
    """

    network: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    predict: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Entry:
    """What is known of a network without importing its library.

    Args:
        library: Which it needs; "torch" for no other.
        description: For people.
        data: Which data it is trained on.
    """

    library: str
    description: str
    data: str = "mnist"


_CLASS = "784-128-10, T=15, membranes by hand"
_SMALL = "784-64-10, T=15, membranes by hand; cross-entropy of counts"
_JELLY = "784-100-10, T=25; squared error of rates"
_LOUDER = "torch's first weights, nearly silent, times"

_CONVOLUTIONAL = f"12C5-P2-32C5-P2-10, T=10; cross-entropy of counts; {_LOUDER} 2"

_BINARY = "784-128-128-10, weights and activations of one bit, batch norms, the last one behind the scores"

NETWORKS = {
    "count": Entry("snntorch", f"{_CLASS}; ce_count_loss, SF.acc logged, loss.item()"),
    "rate": Entry("snntorch", f"{_CLASS}; ce_rate_loss"),
    "temporal": Entry("snntorch", f"{_CLASS}; ce_temporal_loss"),
    "membrane": Entry("snntorch", f"{_CLASS}; ce_max_membrane_loss"),
    "population": Entry("snntorch", "784-128-100, T=15, membranes by hand; ce_count_loss of ten neurons a class"),
    "in_place": Entry("snntorch", f"{_CLASS}; counts by cnt += spk"),
    "own_surrogate": Entry("torch", f"{_CLASS}; neurons and surrogate (an autograd.Function) of its author's"),
    "tutorial5": Entry("snntorch", "784-1000-10, T=25; cross-entropy of the membrane at every step (its tutorial 5)"),
    "tutorial6": Entry("snntorch", f"8C5-MP2-16C5-MP2-10, T=10; ce_rate_loss (its tutorial 6, smaller); {_LOUDER} 3"),
    "synaptic": Entry("snntorch", "Synaptic 784-128-10, T=15, states by hand; cross-entropy of counts"),
    "rleaky": Entry("snntorch", "RLeaky 784-128, Leaky 128-10, T=15, states by hand; cross-entropy of counts"),
    "deep": Entry("snntorch", f"784-200-200-10, T=25, membranes by hand; cross-entropy of counts; {_LOUDER} 2"),
    "conv": Entry("snntorch", _CONVOLUTIONAL),
    "conv_control": Entry("snntorch", f"{_CONVOLUTIONAL}; filters stay random, only the readout is trained"),
    "fashion_conv": Entry("snntorch", _CONVOLUTIONAL, "fashion"),
    "fashion_conv_control": Entry("snntorch", f"{_CONVOLUTIONAL}; filters stay random", "fashion"),
    "learned": Entry("snntorch", f"{_CLASS}; a learned leak and threshold for every neuron"),
    "small": Entry("snntorch", _SMALL),
    "energy": Entry("snntorch", f"{_SMALL}, and 0.1 times the mean of the hidden spikes"),
    "pruned": Entry("snntorch", f"{_SMALL}; 80 % of the first weights taken away by torch's prune"),
    "masked": Entry("snntorch", f"{_SMALL}; 80 % of the first weights masked in a Linear of its author's"),
    "parametrised": Entry("snntorch", f"{_SMALL}; 80 % of the first weights masked by torch's parametrize"),
    "norse": Entry("norse", f"LIFCell 784-100, LICell 100-10, T=25; highest voltage; {_LOUDER} 5"),
    "norse_recurrent": Entry("norse", "LIFRecurrentCell 784-100, LICell 100-10, T=25; highest voltage"),
    "norse_adaptive": Entry("norse", f"LSNNCell 784-100, LICell 100-10, T=25; highest voltage; {_LOUDER} 5"),
    "norse_lifted": Entry("norse", f"Lift(Conv2d 8C5, stride 2), LIF, LI, T=10; highest voltage; {_LOUDER} 5"),
    "spikingjelly": Entry("spikingjelly", f"LIFNode in step mode s, {_JELLY}; {_LOUDER} 5"),
    "spikingjelly_m": Entry("spikingjelly", f"LIFNode in step mode m, {_JELLY}; {_LOUDER} 5"),
    "plif": Entry("spikingjelly", f"ParametricLIFNode in step mode m, {_JELLY}; {_LOUDER} 5"),
    "if": Entry("spikingjelly", f"IFNode in step mode m, {_JELLY}; {_LOUDER} 5"),
    "sew": Entry("spikingjelly", "a SEW residual block of 16 channels behind a strided convolution, batch norms, T=4"),
    "lenet4": Entry("brevitas", "LeNet of 4-bit weights and activations"),
    "tfc": Entry("brevitas", "TFC of BNN-PYNQ: 1-bit weights and activations, batch norm, dropout, squared hinge loss"),
    "lstm": Entry("torch", "LSTM of 64 over 28 rows"),
    "transformer": Entry("torch", "one encoder block of 64, 4 heads, over 28 rows"),
    "binary": Entry("torch", f"{_BINARY}; a straight-through gradient of its author's"),
    "binary_control": Entry("torch", f"{_BINARY}; hidden weights stay random, only the readout and norms are trained"),
    "wine": Entry("torch", "13-16-3, sign activations, a straight-through gradient of its author's", "wine"),
}


def missing(name: str) -> str | None:
    """Return why a network cannot be made, in a sentence; None when it can.

    Args:
        name: Of the network.
    """
    entry = NETWORKS[name]
    for package in (entry.library, *(["sklearn"] if entry.data == "wine" else [])):
        if find_spec(package) is None:
            return f'{package} is not installed: pip install -e ".[examples,snntorch,brevitas,bench]"'
    return None


def make(name: str) -> Case:
    """Return a network, its first weights drawn from torch's global generator.

    Args:
        name: Of the network.
    """
    module = import_module(f"{__name__}.with_{NETWORKS[name].library}")
    case: Case = module.CASES[name]()
    return case


def louder(network: nn.Module, factor: float) -> None:
    """Multiply the weights of linear layers and convolutions: neurons that all start silent tell candidates nothing.

    Args:
        network: Changed in place.
        factor: For all of them.
    """
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            module.weight.data.mul_(factor)
