"""Rules for kinds of operations: how axes go through an operation, and which of them it mixes.

An operation *mixes* an axis of an operand when one place of its output depends on several places of that axis: what a
candidate changes there spreads. Along all other axes it works place by place, and a change stays where it is. An
operation without a rule mixes everything, which is always right and never fast.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.axes import Axis, Labels
from lightning_polystep.tape.tape import Operation, Ref

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


# Views


@flows(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def reshape(site: Site) -> Flow:
    """Axes are merged and cut."""
    labels, given, wanted = site.labels, list(site.operands[0]), list(site.shapes[0])
    out: list[Axis] = []
    mixed: set[int] = set()
    position = place = 0
    while position < len(given) or place < len(wanted):
        # The shortest run of axes that holds as much on both sides.
        first, start = position, place
        size = have = 1
        while True:
            if have == size and (position > first or place > start):
                break
            if have <= size and position < len(given):
                have *= labels.size(given[position])
                position += 1
            elif place < len(wanted):
                size *= wanted[place]
                place += 1
            else:
                break
        merged = tuple(label for axis in given[first:position] for label in axis)
        parts = labels.cut(merged, wanted[start:place])
        if parts is None:
            mixed |= set(range(first, position))
            parts = [labels.fresh(size) for size in wanted[start:place]]
        out.extend(parts)
    return Flow((tuple(out),), (frozenset(mixed),))


@flows(aten.t)
def turned(site: Site) -> Flow:
    """The axes of a matrix change places."""
    return Flow((site.operands[0][::-1],), (frozenset(),))


@flows(aten.transpose)
def transposed(site: Site) -> Flow:
    """Two axes change places."""
    axes = list(site.operands[0])
    one, other = site.axis(1), site.axis(2)
    axes[one], axes[other] = axes[other], axes[one]
    return Flow((tuple(axes),), (frozenset(),))


@flows(aten.permute)
def permuted(site: Site) -> Flow:
    """Axes in another order."""
    axes = site.operands[0]
    return Flow((tuple(axes[place] for place in site.args[1]),), (frozenset(),))


@flows(aten.unsqueeze)
def unsqueezed(site: Site) -> Flow:
    """One more axis of a single place."""
    axes = list(site.operands[0])
    axes.insert(site.args[1] % (len(axes) + 1), ())
    return Flow((tuple(axes),), (frozenset(),))


@flows(aten.squeeze)
def squeezed(site: Site) -> Flow:
    """Fewer axes of a single place: those that are left keep their order."""
    axes = [axis for axis in site.operands[0] if site.labels.size(axis) > 1]
    out = [axes.pop(0) if size > 1 else () for size in site.shapes[0]]
    return Flow((tuple(out),), (frozenset(),))


@flows(aten.expand)
def expanded(site: Site) -> Flow:
    """Axes of a single place become wider."""
    axes, shape, labels = site.operands[0], site.shapes[0], site.labels
    more = len(shape) - len(axes)
    out = [
        axes[place - more] if place >= more and labels.size(axes[place - more]) == size else labels.fresh(size)
        for place, size in enumerate(shape)
    ]
    return Flow((tuple(out),), (frozenset(),))


@flows(aten.select)
def selected(site: Site) -> Flow:
    """One place of an axis."""
    axis = site.axis(1)
    axes = site.operands[0]
    return Flow(((*axes[:axis], *axes[axis + 1 :]),), (frozenset({axis}),))


@flows(aten.unbind)
def unbound(site: Site) -> Flow:
    """All places of an axis, one by one."""
    axis = site.axis(1)
    axes = site.operands[0]
    return Flow(((*axes[:axis], *axes[axis + 1 :]),) * len(site.shapes), (frozenset({axis}),))


@flows(
    aten.slice,
    aten.split,
    aten.unsafe_split,
    aten.split_with_sizes,
    aten.unsafe_split_with_sizes,
    aten.constant_pad_nd,
    aten.unfold,
    aten.flip,
    aten.roll,
    aten.repeat,
    aten.cumsum,
    aten.sort,
    aten.topk,
    aten._softmax,
    aten._log_softmax,
    aten._safe_softmax,
    aten.argsort,
    aten.cumprod,
    aten.logcumsumexp,
)
def along_some_axes(site: Site) -> Flow:
    """Some axes are mixed; those whose length does not change in operations that cut or pad are not."""
    function, axes, labels = site.operation.function, site.operands[0], site.labels
    packet, rank = function.overloadpacket, len(axes)
    resized = packet in {aten.slice, aten.split, aten.unsafe_split, aten.split_with_sizes, aten.constant_pad_nd}
    if resized or packet is aten.unsafe_split_with_sizes:
        touched = {i for i in range(rank) if any(shape[i] != labels.size(axes[i]) for shape in site.shapes)}
    elif packet in {aten.flip, aten.roll}:
        touched = set(site.axes(2 if packet is aten.roll else 1))
    elif packet in {aten.sort, aten.argsort, aten.topk, aten.repeat, aten.unfold}:
        if packet in {aten.repeat, aten.unfold}:
            return opaque(site)
        position = {aten.sort: 1, aten.argsort: 1, aten.topk: 2}[packet]
        touched = {site.axis(position, -1)}
    else:
        touched = {site.axis(1)}
    outputs = tuple(
        tuple(labels.fresh(shape[i]) if i in touched else axes[i] for i in range(rank)) for shape in site.shapes
    )
    return Flow(outputs, (frozenset(touched), *[frozenset[int]()] * (len(site.operands) - 1)))


# Reductions

REDUCTIONS = {
    aten.sum, aten.mean, aten.amax, aten.amin, aten.argmax, aten.argmin, aten.max, aten.min, aten.any, aten.all,
    aten.prod, aten.logsumexp, aten.var, aten.std, aten.linalg_vector_norm, aten.norm, aten.count_nonzero,
    aten.median, aten.var_mean, aten.aminmax,
}  # fmt: skip


def reduced_axes(site: Site) -> list[int]:
    """Return the axes of the first operand that a reduction takes together."""
    rank, shape = len(site.operands[0]), site.shapes[0]
    if not shape and rank:
        return list(range(rank))
    position = 2 if site.operation.function.overloadpacket in {aten.linalg_vector_norm, aten.norm} else 1
    if "dim" in site.operation.kwargs:
        given = site.operation.kwargs["dim"]
        return sorted(axis % max(1, rank) for axis in (given if isinstance(given, Sequence) else [given]))
    return site.axes(position)


@flows(*REDUCTIONS)
def reduced(site: Site) -> Flow:
    """Some axes, or all, are taken together."""
    if len(site.operands) != 1:  # max(a, b) is elementwise
        return elementwise(site)
    axes, gone = site.operands[0], set(reduced_axes(site))
    kept = len(site.shapes[0]) == len(axes)
    out = tuple(() if i in gone else axis for i, axis in enumerate(axes) if kept or i not in gone)
    return Flow((out,) * len(site.shapes), (frozenset(gone),))


@flows(aten.nll_loss_forward)
def log_likelihoods(site: Site) -> Flow:
    """The score of the right class, per sample."""
    scores, target = site.operands[0], site.operands[1]
    if len(scores) != 2 or not site.labels.unify(scores[0], target[0]):
        return opaque(site)
    mixed = site.nothing()
    mixed[0] = frozenset({1})
    return Flow(((scores[0],), *[() for _ in site.shapes[1:]]), tuple(mixed))


@flows(aten.multi_margin_loss)
def margins(site: Site) -> Flow:
    """A number per sample, from all of its scores."""
    scores, target = site.operands[0], site.operands[1]
    if len(scores) != 2 or not site.labels.unify(scores[0], target[0]):
        return opaque(site)
    mixed = site.nothing()
    mixed[0] = frozenset({1})
    return Flow(((scores[0],),), tuple(mixed))


# Several become one


@flows(aten.stack)
def stacked(site: Site) -> Flow:
    """A new axis, one place for each operand."""
    labels, rank = site.labels, len(site.operands[0])
    mixed = site.nothing()
    common = list(site.operands[0])
    for number, axes in enumerate(site.operands[1:], start=1):
        for position, axis in enumerate(axes):
            if not labels.unify(common[position], axis):
                mixed[number] |= {position}
                mixed[0] |= {position}
    for position in mixed[0]:
        common[position] = labels.fresh(labels.size(common[position]))
    place = (site.args[1] if len(site.args) > 1 else 0) % (rank + 1)
    common.insert(place, labels.fresh(len(site.operands)))
    return Flow((tuple(common),), tuple(mixed))


@flows(aten.cat)
def concatenated(site: Site) -> Flow:
    """Operands behind one another along an axis."""
    labels, shape = site.labels, site.shapes[0]
    axis = (site.args[1] if len(site.args) > 1 else site.operation.kwargs.get("dim", 0)) % len(shape)
    if any(len(axes) != len(shape) for axes in site.operands):
        return opaque(site)
    mixed = [frozenset({axis}) for _ in site.operands]
    common = list(site.operands[0])
    for axes in site.operands[1:]:
        for position in range(len(shape)):
            if position != axis and not labels.unify(common[position], axes[position]):
                return opaque(site)
    common[axis] = labels.fresh(shape[axis])
    return Flow((tuple(common),), tuple(mixed))


@flows(aten.select_scatter, aten.slice_scatter)
def put_back(site: Site) -> Flow:
    """A part of a tensor is replaced."""
    labels, whole, part = site.labels, site.operands[0], site.operands[1]
    is_select = site.operation.function.overloadpacket is aten.select_scatter
    axis = (site.args[2] if len(site.args) > 2 else site.operation.kwargs.get("dim", 0)) % len(whole)
    touched = {axis}
    if not is_select and labels.size(part[axis]) == labels.size(whole[axis]):
        touched = set()
    others = [i for i in range(len(whole)) if i not in touched]
    parts = list(part) if is_select else [part[i] for i in others]
    for i, own in zip(others, parts, strict=True):
        if not labels.unify(whole[i], own):
            return opaque(site)
    of_part = frozenset() if is_select else frozenset(touched)
    out = tuple(labels.fresh(site.shapes[0][i]) if i in touched else whole[i] for i in range(len(whole)))
    return Flow((out,), (frozenset(touched), of_part))


# Products


@flows(aten.mm)
def product(site: Site) -> Flow:
    """Rows of the first, columns of the second."""
    left, right = site.operands
    return Flow(((left[0], right[1]),), (frozenset({1}), frozenset({0})))


@flows(aten.addmm)
def product_and_sum(site: Site) -> Flow:
    """A product, and something that broadcasts."""
    added, left, right = site.operands
    labels, mixed = site.labels, set[int]()
    out = (left[0], right[1])
    for position, axis in enumerate(added):
        place = position - len(added) + 2
        if labels.size(axis) > 1 and not labels.unify(out[place], axis):
            mixed.add(position)
    return Flow((out,), (frozenset(mixed), frozenset({1}), frozenset({0})))


@flows(aten.bmm)
def products(site: Site) -> Flow:
    """Products of matrices, one for each place of the first axis."""
    left, right = site.operands
    if not site.labels.unify(left[0], right[0]):
        return opaque(site)
    return Flow(((left[0], left[1], right[2]),), (frozenset({2}), frozenset({1})))


@flows(aten.mv)
def product_with_vector(site: Site) -> Flow:
    """A matrix times a vector."""
    return Flow(((site.operands[0][0],),), (frozenset({1}), frozenset({0})))


@flows(aten.convolution)
def convolved(site: Site) -> Flow:
    """Samples stay apart; output channels are the rows of the weight, unless it has groups."""
    inputs, weight = site.operands[0], site.operands[1]
    transposed, groups = site.args[6], site.args[8]
    if transposed or len(inputs) != len(weight):
        return opaque(site)
    labels = site.labels
    depthwise = groups > 1 and groups == labels.size(inputs[1]) == labels.size(weight[0])
    if groups > 1 and not depthwise:
        return opaque(site)
    if depthwise and not labels.unify(inputs[1], weight[0]):
        return opaque(site)
    spatial = set(range(2, len(inputs)))
    out = (inputs[0], weight[0], *(labels.fresh(size) for size in site.shapes[0][2:]))
    mixed = [frozenset(spatial if depthwise else spatial | {1}), frozenset(range(1, len(weight)))]
    if len(site.operands) > 2:
        if not labels.unify(weight[0], site.operands[2][0]):
            return opaque(site)
        mixed.append(frozenset())
    return Flow((out,), tuple(mixed))


@flows(
    aten.max_pool2d_with_indices, aten.max_pool2d, aten.avg_pool2d, aten._adaptive_avg_pool2d, aten.adaptive_max_pool2d,
    aten.upsample_nearest2d, aten.avg_pool1d, aten.avg_pool3d, aten.max_pool3d_with_indices,
)  # fmt: skip
def pooled(site: Site) -> Flow:
    """Positions are taken together, samples and channels stay apart."""
    axes = site.operands[0]
    positions = 1 if site.operation.function.overloadpacket is aten.avg_pool1d else 2
    positions = 3 if "3d" in str(site.operation.function) else positions
    kept = len(axes) - positions
    outputs = tuple((*axes[:kept], *(site.labels.fresh(size) for size in shape[kept:])) for shape in site.shapes)
    return Flow(outputs, (frozenset(range(kept, len(axes))),))


# Normalisation


@flows(aten.native_batch_norm, aten._native_batch_norm_legit, aten.cudnn_batch_norm)
def batch_normalised(site: Site) -> Flow:
    """Channels stay apart; with the batch's own statistics samples and positions do not."""
    axes, labels = site.operands[0], site.labels
    training = bool(site.args[5])
    mixed = [frozenset(set(range(len(axes))) - {1}) if training else frozenset()]
    for other in site.operands[1:]:
        if not labels.unify(axes[1], other[0]):
            return opaque(site)
        mixed.append(frozenset())
    rest = tuple((axes[1],) if shape == site.shapes[1] and shape != (0,) else site.fresh(number)
                 for number, shape in enumerate(site.shapes[1:], start=1))  # fmt: skip
    return Flow((axes, *rest), tuple(mixed))


@flows(aten.native_layer_norm)
def layer_normalised(site: Site) -> Flow:
    """The last axes are taken together, but keep their places."""
    axes = site.operands[0]
    kept = len(axes) - len(site.args[1])
    gone = frozenset(range(kept, len(axes)))
    out = (*axes[:kept], *(site.labels.fresh(site.labels.size(axis)) for axis in axes[kept:]))
    statistics = (*axes[:kept], *(() for _ in axes[kept:]))
    others = tuple(frozenset(range(len(operand))) for operand in site.operands[1:])
    return Flow((out, statistics, statistics)[: len(site.shapes)], (gone, *others))


@flows(aten.native_group_norm)
def group_normalised(site: Site) -> Flow:
    """Samples stay apart."""
    axes = site.operands[0]
    out = (axes[0], *(site.labels.fresh(site.labels.size(axis)) for axis in axes[1:]))
    others = tuple(frozenset(range(len(operand))) for operand in site.operands[1:])
    rest = tuple((axes[0], *(site.labels.fresh(size) for size in shape[1:])) for shape in site.shapes[1:])
    return Flow((out, *rest), (frozenset(range(1, len(axes))), *others))


# Look-ups


@flows(aten.embedding)
def looked_up(site: Site) -> Flow:
    """Rows of a table: which ones is asked place by place."""
    table, index = site.operands
    return Flow(((*index, table[1]),), (frozenset({0}), frozenset()))


@flows(aten.gather)
def gathered(site: Site) -> Flow:
    """Places along one axis, chosen by an index of the same rank."""
    given, index, labels = site.operands[0], site.operands[1], site.labels
    axis = site.axis(1)
    mixed = {axis}
    for position in range(len(given)):
        if position != axis and not labels.unify(given[position], index[position]):
            mixed.add(position)
    return Flow((index,), (frozenset(mixed), frozenset(mixed - {axis})))


@flows(aten._scaled_dot_product_flash_attention_for_cpu)
def attended(site: Site) -> Flow:
    """Samples and heads stay apart."""
    query, key, value = site.operands[:3]
    labels = site.labels
    out = (query[0], query[1], query[2], value[3])
    for other in (key, value):
        if not (labels.unify(query[0], other[0]) and labels.unify(query[1], other[1])):
            return opaque(site)
    mixed = [frozenset({3}), frozenset({2, 3}), frozenset({2})]
    mixed += [frozenset(range(len(axes))) for axes in site.operands[3:]]
    rest = tuple((query[0], *(labels.fresh(size) for size in shape[1:])) if shape else () for shape in site.shapes[1:])
    return Flow((out, *rest), tuple(mixed))


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
    return flow


def operand_positions(operation: Operation) -> list[tuple[int, Ref]]:
    """Return the positions of arguments that are tensors, of the operators whose tensors are no lists."""
    return [(position, argument) for position, argument in enumerate(operation.args) if isinstance(argument, Ref)]
