"""Score: the fastest tier for a layer's place in a recognised stack."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_polystep.particles import Block
from lightning_polystep.scoring.feedforward import FeedforwardStack
from lightning_polystep.scoring.feedforward_tiers import ResponseTier, feedforward_tier
from lightning_polystep.scoring.flips import HiddenFlipTier, ScoreFlipTier
from lightning_polystep.scoring.incremental import IncrementalTier
from lightning_polystep.scoring.outcome import HiddenOutcomeTier, ReadoutOutcomeTier
from lightning_polystep.scoring.routed import RoutedStack, SeenBehind, SeenByExpert
from lightning_polystep.scoring.routed_tiers import BeforeChoiceResponseTier, BeforeChoiceTier, RouterTier
from lightning_polystep.scoring.slot_tiers import KeyTier, ValueResponseTier, ValueTier
from lightning_polystep.scoring.slots import SlotStack
from lightning_polystep.scoring.spiking import SpikingStack
from lightning_polystep.scoring.stack import Capture, Layer, NotAStackError, Stack
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
    if isinstance(stack, RoutedStack):
        return _routed_tier(block, stack, capture)
    places = [index for index, linear in enumerate(stack.linears) if linear is block.site]
    if not places:
        raise NotAStackError("it is no Linear weight of the recognised network")
    _check_own(block)
    if isinstance(stack, FeedforwardStack):
        if block.subspace == "flips":
            return _flip_tier(places[0], stack, capture)
        return feedforward_tier(places[0], stack, capture, (block.group["response_grid"] or 0))
    assert isinstance(stack, SpikingStack)
    return _spiking_tier(places[0], stack, capture)


def _check_own(block: Block) -> None:
    if block.shared:
        raise NotAStackError("its weight belongs to several layers")


def _routed_tier(block: Block, stack: RoutedStack, capture: Capture) -> StackTier:
    _check_own(block)
    place = _place_in(stack.layers, block)
    if place is not None and place < stack.place:
        return _tier_before_choice(place, block, stack, capture)
    if place == stack.place or (isinstance(stack, SlotStack) and block.parameters[0] is stack.attention.keys):
        return _tier_at_choice(block, stack, capture)
    nodes = block.group["response_grid"] or 0
    if place is not None and stack.behind is not None:
        return feedforward_tier(place - stack.place - 1, stack.behind, SeenBehind(capture, stack), nodes)
    for number, expert in enumerate(stack.experts):
        inside = _place_in(expert.layers, block)
        if inside is not None:
            return feedforward_tier(inside, expert, SeenByExpert(capture, stack, number), nodes)
    raise NotAStackError("it is no Linear weight of the recognised network")


def _place_in(layers: Sequence[Layer], block: Block) -> int | None:
    return next((place for place, layer in enumerate(layers) if layer.linear is block.site), None)


def _tier_before_choice(place: int, block: Block, stack: RoutedStack, capture: Capture) -> StackTier:
    if place != stack.place - 1:
        raise NotAStackError("another layer lies between it and the choice of an expert or a slot")
    nodes = block.group["response_grid"] or 0
    followers = [feedforward_tier(place, expert, capture, nodes) for expert in stack.experts]
    on_grid = tuple(each for each in followers if isinstance(each, ResponseTier) and each.is_continuous)
    if len(on_grid) == len(followers):
        return BeforeChoiceResponseTier(stack, capture, place, on_grid)
    return BeforeChoiceTier(stack, capture, place, tuple(followers))


def _tier_at_choice(block: Block, stack: RoutedStack, capture: Capture) -> StackTier:
    place = stack.place
    if not isinstance(stack, SlotStack):
        return RouterTier(stack, capture, place)
    if block.parameters[0] is stack.attention.keys:
        return KeyTier(stack, capture, place)
    follower = feedforward_tier(place, stack.experts[0], capture, (block.group["response_grid"] or 0))
    if isinstance(follower, ResponseTier) and follower.is_continuous:
        return ValueResponseTier(stack, capture, place, follower)
    return ValueTier(stack, capture, place, follower)


def _flip_tier(place: int, stack: FeedforwardStack, capture: Capture) -> StackTier:
    return (ScoreFlipTier if place == len(stack.layers) - 1 else HiddenFlipTier)(stack, capture, place)


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
