"""Score: the fastest exact tier for a layer's place in a recognised stack."""

from __future__ import annotations

from lightning_polystep.particles import Block
from lightning_polystep.scoring.feedforward import FeedforwardStack
from lightning_polystep.scoring.feedforward_tiers import ReLUTier, ScoreTier, StepOutcomeTier
from lightning_polystep.scoring.flips import HiddenFlipTier, ScoreFlipTier
from lightning_polystep.scoring.incremental import IncrementalTier
from lightning_polystep.scoring.outcome import HiddenOutcomeTier, ReadoutOutcomeTier
from lightning_polystep.scoring.spiking import SpikingStack
from lightning_polystep.scoring.stack import Capture, NotAStackError, Stack
from lightning_polystep.scoring.stack_tier import StackTier, dynamics


def fastest_tier(block: Block, stack: Stack, capture: Capture) -> StackTier:
    """Return the tier for a block's place in the stack.

    Args:
        block: A block of the module.
        stack: The recognised stack.
        capture: What its layers saw in the latest commit pass.

    Raises:
        NotAStackError: When there is none for that place, saying why.
    """
    places = [index for index, linear in enumerate(stack.linears) if linear is block.site]
    if not places:
        raise NotAStackError("it is no Linear weight of the recognised network")
    if block.shared:
        raise NotAStackError("its weight belongs to several layers")
    if isinstance(stack, FeedforwardStack):
        return (_flip_tier if block.subspace == "flips" else _feedforward_tier)(places[0], stack, capture)
    assert isinstance(stack, SpikingStack)
    return _spiking_tier(places[0], stack, capture)


def _flip_tier(place: int, stack: FeedforwardStack, capture: Capture) -> StackTier:
    return (ScoreFlipTier if place == len(stack.layers) - 1 else HiddenFlipTier)(stack, capture, place)


def _feedforward_tier(place: int, stack: FeedforwardStack, capture: Capture) -> StackTier:
    if place == len(stack.layers) - 1:
        return ScoreTier(stack, capture, place)
    return (ReLUTier if stack.steps(place) is None else StepOutcomeTier)(stack, capture, place)


def _spiking_tier(place: int, stack: SpikingStack, capture: Capture) -> StackTier:
    last = len(stack.layers) - 1
    if place == last:
        return ReadoutOutcomeTier(stack, capture, place)
    neurons = stack.layers[place].neurons
    if place == last - 1 and neurons.num_steps is not None:
        return HiddenOutcomeTier(stack, capture, place)
    if any(dynamics(layer.neurons) != dynamics(neurons) for layer in stack.layers[place:last]):
        raise NotAStackError("the hidden layers behind it reset in other ways or fire on other terms")
    return IncrementalTier(stack, capture, place)
