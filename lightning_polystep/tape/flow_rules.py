"""Rules for kinds of operations: how axes go through views, reductions, joins, products and norms."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lightning_polystep.tape.axes import Axis
from lightning_polystep.tape.flow import Flow, Site, elementwise, flows, opaque

aten = torch.ops.aten

# Views


@flows(aten.view, aten._unsafe_view, aten.reshape, aten._reshape_alias)
def reshape(site: Site) -> Flow:
    """Axes are merged and cut."""
    if site.operation.function is aten.view.dtype:
        return elementwise(site) if len(site.operands[0]) == len(site.shapes[0]) else opaque(site)
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
    aten.flip,
    aten.roll,
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
    axes, labels = site.operands[0], site.labels
    packet, rank = site.packet, len(axes)
    resized = packet in {aten.slice, aten.split, aten.unsafe_split, aten.split_with_sizes}
    if resized or packet is aten.unsafe_split_with_sizes:
        touched = {i for i in range(rank) if any(shape[i] != labels.size(axes[i]) for shape in site.shapes)}
    elif packet is aten.constant_pad_nd:
        pads = site.args[1]  # from the last axis on; what is cut on one side may be added on the other
        touched = {rank - 1 - place // 2 for place, pad in enumerate(pads) if pad}
    elif packet in {aten.flip, aten.roll}:
        touched = set(site.axes(2 if packet is aten.roll else 1))
    elif packet in {aten.sort, aten.argsort, aten.topk}:
        touched = {site.axis(2 if packet is aten.topk else 1, -1)}
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
    position = 2 if site.packet in {aten.linalg_vector_norm, aten.norm} else 1
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


@flows(aten.nll_loss_forward, aten.multi_margin_loss)
def per_sample(site: Site) -> Flow:
    """A number for each sample, from its scores."""
    scores, target = site.operands[0], site.operands[1]
    if len(scores) != 2 or not site.labels.unify(scores[0], target[0]):
        return opaque(site)
    mixed = site.nothing()
    mixed[0] = frozenset({1})
    return Flow(((scores[0],), *[() for _ in site.shapes[1:]]), tuple(mixed))


# Several become one


@flows(aten.stack)
def stacked(site: Site) -> Flow:
    """A new axis, one place for each operand."""
    labels, rank = site.labels, len(site.operands[0])
    common, apart = list(site.operands[0]), set[int]()
    for axes in site.operands[1:]:
        apart |= {position for position, axis in enumerate(axes) if not labels.unify(common[position], axis)}
    mixed = [frozenset(apart) for _ in site.operands]
    for position in apart:
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
    is_select = site.packet is aten.select_scatter
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
    positions = 1 if site.packet is aten.avg_pool1d else 2
    positions = 3 if "3d" in str(site.operation.function) else positions
    kept = len(axes) - positions
    outputs = tuple((*axes[:kept], *(site.labels.fresh(size) for size in shape[kept:])) for shape in site.shapes)
    return Flow(outputs, (frozenset(range(kept, len(axes))),))


# Normalisation


@flows(aten.native_batch_norm, aten.cudnn_batch_norm)
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
    """The last axes are taken together; each place has a scale and a shift of its own."""
    axes, labels = site.operands[0], site.labels
    kept = len(axes) - len(site.args[1])
    places = _scaled(site, [labels.fresh(labels.size(axis)) for axis in axes[kept:]])
    statistics = (*axes[:kept], *(() for _ in axes[kept:]))
    outputs = ((*axes[:kept], *places), statistics, statistics)[: len(site.shapes)]
    return Flow(outputs, (frozenset(range(kept, len(axes))), *site.nothing()[1:]))


@flows(aten.native_group_norm)
def group_normalised(site: Site) -> Flow:
    """Samples stay apart; each channel has a scale and a shift of its own."""
    axes, labels = site.operands[0], site.labels
    channel = _scaled(site, [labels.fresh(labels.size(axes[1]))])
    out = (axes[0], *channel, *(labels.fresh(labels.size(axis)) for axis in axes[2:]))
    rest = tuple((axes[0], *(labels.fresh(size) for size in shape[1:])) for shape in site.shapes[1:])
    return Flow((out, *rest), (frozenset(range(1, len(axes))), *site.nothing()[1:]))


def _scaled(site: Site, axes: list[Axis]) -> list[Axis]:
    """Return axes after the scale and the shift, all operands but the first, have been found to go along them."""
    for operand in site.operands[1:]:
        for own, axis in zip(axes, operand, strict=True):
            if not site.labels.unify(own, axis):
                raise ValueError("a scale that does not go along the axes that it scales")
    return axes


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
