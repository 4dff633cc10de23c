"""Score: recognise a network that can be scored as a stack.

A LightningModule says what its network and loss are by two attributes, ``network`` and ``criterion``; nothing else is
asked of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from lightning_polystep.layers import (
    LIF,
    HardMoE,
    LastMembrane,
    Sliced,
    SlotArgmaxAttention,
    SpikeCount,
    SpikeRate,
    TimeFirst,
)
from lightning_polystep.scoring.feedforward import read_feedforward
from lightning_polystep.scoring.mixture import read_mixture
from lightning_polystep.scoring.slots import read_slots
from lightning_polystep.scoring.spiking import read_spiking
from lightning_polystep.scoring.stack import NotAStackError, Stack, known_criterion


def recognise(module: nn.Module) -> Stack:
    """Read a module's ``network`` and ``criterion``.

    Args:
        module: A LightningModule, or any module with these two attributes.

    Returns:
        The stack.

    Raises:
        NotAStackError: Naming what is missing or unknown.
    """
    network, criterion = getattr(module, "network", None), getattr(module, "criterion", None)
    if not isinstance(network, nn.Module) or not isinstance(criterion, nn.Module):
        raise NotAStackError("the module has no attributes network and criterion")
    if any(isinstance(part, Sliced) for part in network.modules() if part is not network):
        raise NotAStackError("a part of the network is Sliced, not the whole of it")
    children, known = _leaves(network), known_criterion(criterion)
    if children and type(children[0]) is TimeFirst:  # acts on the data, before anything that is scored
        children = children[1:]
    choices = [place for place, child in enumerate(children) if type(child) in {HardMoE, SlotArgmaxAttention}]
    if len(choices) > 1:
        raise NotAStackError("the network makes more than one choice of an expert or a slot")
    if choices:
        before, choice, after = children[: choices[0]], children[choices[0]], children[choices[0] + 1 :]
        if isinstance(choice, HardMoE):
            return read_mixture(network, before, choice, [_leaves(e) for e in choice.experts], after, known)
        assert isinstance(choice, SlotArgmaxAttention)
        return read_slots(network, before, choice, after, known)
    spiking = any(isinstance(child, LIF | LastMembrane | SpikeCount | SpikeRate) for child in children)
    read = read_spiking if spiking else read_feedforward
    return read(network, children, known)


def _leaves(network: nn.Module) -> list[nn.Module]:
    """The layers of a network that do more than reshape."""
    return [child for child in _in_order(network) if type(child) not in {nn.Flatten, nn.Identity}]


def _in_order(network: nn.Module) -> Iterator[nn.Module]:
    """The leaves of nested Sequentials, in the order in which they run."""
    if not isinstance(network, nn.Sequential):
        yield network
        return
    if type(network).forward not in {nn.Sequential.forward, Sliced.forward}:
        raise NotAStackError(f"{type(network).__name__} has a forward of its own")
    for child in network:
        yield from _in_order(child)
