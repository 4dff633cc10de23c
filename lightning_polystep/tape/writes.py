"""Observe: what an operator writes in place, and how the same is said by operators that write nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.tape.tape import Operation, Ref, Unknown, references

aten = torch.ops.aten

# They return what shares memory with their operand, though they do not declare it.
_UNDECLARED_VIEWS = {aten._unsafe_view, aten.unsafe_split, aten.unsafe_split_with_sizes}
# They give a tensor other memory, whose numbers nobody has said.
_NEW_MEMORY = {aten.resize_, aten.resize_as_, aten.set_}
# What they compute has the type bool; written in place it takes that of its target.
_TRUTHS = {"gt", "ge", "lt", "le", "eq", "ne", "logical_and", "logical_or", "logical_xor", "logical_not"}


class Facts(NamedTuple):
    """What is known of an operator from its schema.

    Args:
        written: Positions of the arguments that it writes.
        written_names: Likewise of those given by name.
        is_view: Whether what it returns shares memory with its first argument.
        turns: Whether it changes the shape of the tensor that it is given, and none of its numbers.
        functional: What it computes, as an operator that writes nothing; None where there is none.
        random: Whether what it writes comes from a generator and from no tensor.
        truth: Whether what it computes is true or false.
    """

    written: tuple[int, ...]
    written_names: tuple[str, ...]
    is_view: bool
    turns: bool
    functional: Callable[..., Any] | None
    random: bool
    truth: bool

    def writes(self) -> bool:
        """Tell whether the operator writes in place."""
        return bool(self.written or self.written_names)

    def targets(self, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor]:
        """Return the tensors that a call writes."""
        found = [args[i] for i in self.written if i < len(args)]
        found += [kwargs[name] for name in self.written_names if name in kwargs]
        return list(tensors_of(found))


def tensors_of(arguments: Any) -> Iterator[Tensor]:
    """Yield the tensors of arguments, however nested."""
    if isinstance(arguments, Tensor):
        yield arguments
    elif isinstance(arguments, tuple | list):
        for argument in arguments:
            yield from tensors_of(argument)


_known: dict[Any, Facts] = {}


def facts_of(function: Any) -> Facts:
    """Return what is known of an operator."""
    known = _known.get(function)
    if known is None:
        schema = function._schema
        writes = [i for i, a in enumerate(schema.arguments) if a.alias_info is not None and a.alias_info.is_write]
        aliased = [r.alias_info is not None and not r.alias_info.is_write for r in schema.returns]
        seeded = torch.Tag.nondeterministic_seeded in function.tags
        functional = _functional(function, writes) if writes else None
        known = _known[function] = Facts(
            written=tuple(i for i in writes if not schema.arguments[i].kwarg_only),
            written_names=tuple(schema.arguments[i].name for i in writes if schema.arguments[i].kwarg_only),
            is_view=any(aliased) or getattr(function, "overloadpacket", None) in _UNDECLARED_VIEWS,
            turns=torch.Tag.inplace_view in function.tags and functional is not None and facts_of(functional).is_view,
            functional=functional,
            random=seeded and bool(writes) and sum("Tensor" in str(a.type) for a in schema.arguments) == len(writes),
            truth=_bare_name(function).rstrip("_") in _TRUTHS,
        )
    return known


def _bare_name(function: Any) -> str:
    return str(function._schema.name).rpartition("::")[2]


def _functional(function: Any, writes: Sequence[int]) -> Callable[..., Any] | None:
    """Return the operator of the same arguments that computes what another one writes in place or into ``out``."""
    namespace, name = function._schema.name.split("::")
    in_place = name.endswith("_") and not name.endswith("__")
    packet = getattr(getattr(torch.ops, namespace), name[:-1] if in_place else name, None)
    if packet is None:
        return None
    arguments = function._schema.arguments
    wanted = [
        (a.name, _bare_type(a)) for i, a in enumerate(arguments) if in_place or i not in writes or not a.kwarg_only
    ]
    for overload in packet.overloads():
        candidate = getattr(packet, overload)
        given = candidate._schema.arguments
        if any(a.alias_info is not None and a.alias_info.is_write for a in given):
            continue
        if [(a.name, _bare_type(a)) for a in given][: len(wanted)] == wanted and len(given) <= len(wanted) + 1:
            return candidate
    return None


def _bare_type(argument: Any) -> str:
    return str(argument.type)


class Said(NamedTuple):
    """An operation that writes nothing, before it is put on the tape.

    Args:
        function: The operator.
        args: Its arguments; ``Ref(-1)`` is what the operation before it made.
        kwargs: Those by name.
    """

    function: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def said(
    function: Any, args: tuple[Any, ...], kwargs: dict[str, Any], target: Tensor, find: Callable[[int], Tensor]
) -> list[Said] | None:
    """Return operations that compute what a write leaves in its one target, the last of them; None where none do.

    Args:
        function: The operator that writes.
        args: Its arguments, tensors as :class:`Ref`.
        kwargs: Those by name, but for the target.
        target: What it writes.
        find: Returns the tensor of a value.
    """
    if function is aten.copy_.default:
        return _copied(args[0], args[1], target, find)
    if function in {aten.fill_.Scalar, aten.zero_.default}:
        return [Said(aten.full_like.default, (args[0], args[1] if len(args) > 1 else 0), {})]
    if function is aten.index_put_.default:
        masked = _masked(args, target, find)
        if masked is not None:
            return masked
    facts = facts_of(function)
    if facts.functional is None or function.overloadpacket in _NEW_MEMORY:
        return None
    steps = [Said(facts.functional, args, kwargs)]
    types = {find(index).dtype for index in references((args, kwargs))}
    if facts.truth or types - {target.dtype}:
        steps.append(Said(aten._to_copy.default, (Ref(-1),), {"dtype": target.dtype}))
    return steps


def _copied(into: Any, source: Any, target: Tensor, find: Callable[[int], Tensor]) -> list[Said]:
    """Say ``target.copy_(source)``."""
    if not isinstance(source, Ref):
        return [Said(aten.full_like.default, (into, source), {})]
    tensor = find(source.index)
    steps = list[Said]()
    if tensor.dtype != target.dtype or tensor.device != target.device:
        options = {"dtype": target.dtype, "device": target.device}
        steps.append(Said(aten._to_copy.default, (source,), options))
    if tensor.shape != target.shape:
        steps.append(Said(aten.expand.default, (Ref(-1) if steps else source, list(target.shape)), {}))
    return steps or [Said(aten.clone.default, (source,), {})]


def _masked(args: tuple[Any, ...], target: Tensor, find: Callable[[int], Tensor]) -> list[Said] | None:
    """Say ``target[mask] = number`` as a choice, whose result has a shape that does not depend on the mask."""
    into, indices, value = args[:3]
    if len(args) > 3 and args[3]:  # accumulates
        return None
    masks = [(place, index) for place, index in enumerate(indices) if index is not None]
    if len(masks) != 1 or find(value.index).numel() != 1 or find(masks[0][1].index).dtype != torch.bool:
        return None
    place, mask = masks[0]
    own = find(mask.index).shape
    shape = [*[1] * place, *own, *[1] * (target.ndim - place - len(own))]
    return [
        Said(aten.view.default, (mask, shape), {}),
        Said(aten.where.self, (Ref(-1), Ref(value.index), into), {}),
    ]


_RESHAPED = {
    aten.view.default, aten._unsafe_view.default, aten._reshape_alias.default, aten.squeeze.dim, aten.squeeze.default,
    aten.squeeze.dims, aten.unsqueeze.default,
}  # fmt: skip
_SAME = {aten.detach.default, aten.alias.default, aten.lift_fresh.default}
_SCATTERED = {
    aten.select.int: aten.select_scatter.default,
    aten.slice.Tensor: aten.slice_scatter.default,
    aten.diagonal.default: aten.diagonal_scatter.default,
}
_SPLITS = {
    aten.split.Tensor, aten.unsafe_split.Tensor, aten.split_with_sizes.default, aten.unsafe_split_with_sizes.default,
}  # fmt: skip


def undone(made: Operation, output: int, before: Ref, written: Ref, parent: Tensor) -> Said:
    """Return the operation that puts a written view back into what it was cut out of.

    Args:
        made: The operation that cut it out.
        output: Which of its outputs it is.
        before: What the whole was.
        written: What the view is now.
        parent: The whole.
    """
    function, args = made.function, made.args
    if function in _RESHAPED:
        return Said(aten.view.default, (written, list(parent.shape)), {})
    if function in _SAME:
        return Said(aten.alias.default, (written,), {})
    if function is aten.t.default:
        return Said(aten.t.default, (written,), {})
    if function is aten.transpose.int:
        return Said(aten.transpose.int, (written, *args[1:]), {})
    return _undone_by_places(made, output, before, written, parent)


def _undone_by_places(made: Operation, output: int, before: Ref, written: Ref, parent: Tensor) -> Said:
    function, args = made.function, made.args
    if function is aten.permute.default:
        order = [axis % parent.ndim for axis in args[1]]
        return Said(aten.permute.default, (written, [order.index(axis) for axis in range(parent.ndim)]), {})
    if function in _SCATTERED:
        return Said(_SCATTERED[function], (before, written, *args[1:]), {})
    if function is aten.unbind.int:
        return Said(aten.select_scatter.default, (before, written, args[1] if len(args) > 1 else 0, output), {})
    if function in _SPLITS:
        sizes, axis = args[1], args[2] if len(args) > 2 else 0
        start = output * sizes if isinstance(sizes, int) else sum(sizes[:output])
        size = sizes if isinstance(sizes, int) else sizes[output]
        stop = min(start + size, parent.shape[axis])
        return Said(aten.slice_scatter.default, (before, written, axis, start, stop), {})
    return Said(Unknown(f"a write through {function} cannot be recorded"), (before, written), {})
