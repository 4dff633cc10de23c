"""How axes go through an operation, and which of them it mixes; ``flow_rules.py`` says it for kinds of operations.

An operation *mixes* an axis of an operand when one place of its output depends on several places of that axis: what a
candidate changes there spreads. Along all other axes it works place by place, and a change stays where it is. An
operation without a rule mixes everything, which is always right and never fast.

A package with operators of its own registers rules for them::

    from lightning_polystep.tape import elementwise, flows

    flows(torch.ops.mine.spike)(elementwise)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.axes import Axis, Labels
from lightning_polystep.tape.tape import Operation

aten = torch.ops.aten

Axes = tuple[Axis, ...]


class Flow(NamedTuple):
    """How axes go through an operation.

    Args:
        outputs: Axes of each output.
        mixed: Of each operand, the positions of the axes that are mixed.
    """

    outputs: tuple[Axes, ...]
    mixed: tuple[frozenset[int], ...]


class Site(NamedTuple):
    """An operation as its rule sees it.

    Args:
        operation: The operation.
        operands: Axes of each operand, in the order of the arguments.
        shapes: Shapes of the outputs.
        labels: To name new axes, and to take two for the same.
    """

    operation: Operation
    operands: tuple[Axes, ...]
    shapes: tuple[tuple[int, ...], ...]
    labels: Labels

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments of the operation."""
        return self.operation.args

    @property
    def packet(self) -> Any:
        """The operator, whatever its overload."""
        return getattr(self.operation.function, "overloadpacket", None)

    def axis(self, position: int, default: int = 0) -> int:
        """Return an argument that names an axis of the first operand, counted from the front."""
        given = self.args[position] if len(self.args) > position else default
        return int(given) % max(1, len(self.operands[0]))

    def axes(self, position: int) -> list[int]:
        """Return an argument that names axes of the first operand, all of them if it names none."""
        given = self.args[position] if len(self.args) > position else None
        rank = len(self.operands[0])
        if given is None or (isinstance(given, Sequence) and not given):
            return list(range(rank))
        return sorted(axis % max(1, rank) for axis in (given if isinstance(given, Sequence) else [given]))

    def fresh(self, output: int = 0) -> Axes:
        """Return new axes for an output."""
        return tuple(self.labels.fresh(size) for size in self.shapes[output])

    def nothing(self) -> list[frozenset[int]]:
        """Return that no operand is mixed, to be changed by a rule."""
        return [frozenset() for _ in self.operands]


Rule = Callable[[Site], Flow]

FLOWS: dict[Any, Rule] = {}


def flows(*functions: Any) -> Callable[[Rule], Rule]:
    """Register a rule for operators; a packet stands for all its overloads."""

    def register(rule: Rule) -> Rule:
        FLOWS.update(dict.fromkeys(functions, rule))
        return rule

    return register


def rule_of(function: Any) -> Rule:
    """Return the rule of an operator."""
    packet = getattr(function, "overloadpacket", None)
    rule = FLOWS.get(function) or FLOWS.get(packet)
    if rule is None:
        rule = elementwise if is_elementwise(function) else opaque
    return rule


def is_elementwise(function: Any) -> bool:
    """Tell whether an operator works place by place, on operands that broadcast."""
    if getattr(function, "overloadpacket", None) in ELEMENTWISE:
        return True
    return torch.Tag.pointwise in getattr(function, "tags", ()) and function not in FLOWS


# Elementwise, though torch does not mark them so.
ELEMENTWISE = {aten._to_copy, aten.mse_loss, aten.smooth_l1_loss, aten.huber_loss, aten.binary_cross_entropy}
ELEMENTWISE |= {aten.binary_cross_entropy_with_logits, aten.soft_margin_loss, aten.floor_divide, aten.alias}
ELEMENTWISE |= {aten.detach, aten.clone, aten.lift_fresh, aten.lift_fresh_copy, aten.hardtanh, aten.leaky_relu}
ELEMENTWISE |= {aten.elu, aten.softplus, aten.threshold, aten.clamp, aten.xlogy, aten.hardsigmoid, aten.hardswish}
ELEMENTWISE |= {aten.heaviside, aten.softshrink, aten.hardshrink, aten.fake_quantize_per_tensor_affine}

# What these make depends on the shapes of their operands only.
SHAPE_ONLY = {
    aten.zeros_like, aten.ones_like, aten.full_like, aten.empty_like, aten.rand_like, aten.randn_like, aten.new_zeros,
    aten.new_ones, aten.new_full, aten.new_empty, aten.randint_like,
}  # fmt: skip


def elementwise(site: Site) -> Flow:
    """Operands broadcast: axes that meet are the same."""
    labels, rank = site.labels, len(site.shapes[0])
    mixed = [set[int]() for _ in site.operands]
    out: list[Axis] = []
    for place in range(rank):
        met = [
            (number, place - rank + len(axes))
            for number, axes in enumerate(site.operands)
            if place - rank + len(axes) >= 0 and labels.size(axes[place - rank + len(axes)]) > 1
        ]
        axis: Axis = ()
        for number, position in met:
            own = site.operands[number][position]
            if not axis:
                axis = own
            elif not labels.unify(axis, own):
                for each, where in met:
                    mixed[each].add(where)
                axis = labels.fresh(site.shapes[0][place])
                break
        out.append(axis or labels.fresh(site.shapes[0][place]))
    return Flow(tuple(tuple(out) for _ in site.shapes), tuple(map(frozenset, mixed)))


def opaque(site: Site) -> Flow:
    """Everything may depend on everything."""
    outputs = tuple(site.fresh(output) for output in range(len(site.shapes)))
    return Flow(outputs, tuple(frozenset(range(len(axes))) for axes in site.operands))


def read(operation: Operation, axes: Callable[[int], Axes], outputs: Sequence[Tensor], labels: Labels) -> Flow:
    """Return how axes go through an operation.

    Args:
        operation: The operation.
        axes: Returns the axes of a value.
        outputs: What the operation made.
        labels: Of all axes so far.
    """
    site = Site(
        operation, tuple(axes(index) for index in operation.operands), tuple(tuple(o.shape) for o in outputs), labels
    )
    try:
        flow = rule_of(operation.function)(site)
    except (IndexError, TypeError, ValueError):  # called in a way that the rule does not know
        flow = opaque(site)
    return flow if _fits(flow, site) else opaque(site)


def _fits(flow: Flow, site: Site) -> bool:
    """Tell whether what a rule says is about an operation of these shapes."""
    size = site.labels.size
    told = tuple(tuple(size(axis) for axis in axes) for axes in flow.outputs)
    return told == site.shapes and len(flow.mixed) == len(site.operands)
