"""Score: elementwise operations as expressions of one number, for loops that are generated from a tape."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

aten = torch.ops.aten

_NAMES = {
    torch.float32: "np.float32",
    torch.float64: "np.float64",
    torch.int64: "np.int64",
    torch.int32: "np.int32",
    torch.bool: "np.bool_",
}


class Symbol(NamedTuple):
    """A number in a generated loop.

    Args:
        text: The variable that holds it, or a constant.
        dtype: Its type.
    """

    text: str
    dtype: torch.dtype


class NoExpressionError(Exception):
    """Says that an operation has no expression: it is then run by torch."""


def constant(value: float | bool, dtype: torch.dtype) -> Symbol:
    """Return a constant of a type.

    Example:
        >>> constant(0.5, torch.float32).text
        'np.float32(0.5)'
    """
    if dtype not in _NAMES:
        raise NoExpressionError(str(dtype))
    if dtype == torch.bool:
        return Symbol(str(bool(value)), dtype)
    if isinstance(value, float) and not math.isfinite(value):
        return Symbol(
            f"{_NAMES[dtype]}({'np.nan' if math.isnan(value) else '-np.inf' if value < 0 else 'np.inf'})", dtype
        )
    return Symbol(f"{_NAMES[dtype]}({value!r})", dtype)


def cast(symbol: Symbol, dtype: torch.dtype) -> str:
    """Return a number as another type.

    Args:
        symbol: The number.
        dtype: The type.
    """
    if symbol.dtype == dtype:
        return symbol.text
    if dtype not in _NAMES:
        raise NoExpressionError(str(dtype))
    if dtype == torch.bool:
        return f"({symbol.text} != 0)"
    if symbol.dtype == torch.bool:
        return f"({_NAMES[dtype]}(1) if {symbol.text} else {_NAMES[dtype]}(0))"
    return f"{_NAMES[dtype]}({symbol.text})"


# By what is computed, each operand being of the type of the result.
_ARITHMETIC: dict[Any, str] = {
    aten.mul: "({0} * {1})", aten.div: "({0} / {1})", aten.neg: "(-{0})",
    aten.maximum: "max({0}, {1})", aten.minimum: "min({0}, {1})", aten.abs: "abs({0})", aten.exp: "np.exp({0})",
    aten.log: "np.log({0})", aten.sqrt: "np.sqrt({0})", aten.tanh: "np.tanh({0})", aten.square: "({0} * {0})",
    aten.floor: "np.floor({0})", aten.ceil: "np.ceil({0})", aten.round: "np.rint({0})",
    aten.trunc: "np.trunc({0})",
    aten.clone: "{0}", aten.alias: "{0}", aten.detach: "{0}", aten._to_copy: "{0}", aten.lift_fresh_copy: "{0}",
    aten.lift_fresh: "{0}", aten.positive: "{0}",
}  # fmt: skip
_COMPARISONS: dict[Any, str] = {
    aten.gt: ">", aten.ge: ">=", aten.lt: "<", aten.le: "<=", aten.eq: "==", aten.ne: "!=",
}  # fmt: skip
_LOGIC: dict[Any, str] = {
    aten.logical_and: "({0} and {1})", aten.logical_or: "({0} or {1})", aten.logical_not: "(not {0})",
    aten.bitwise_and: "({0} and {1})", aten.bitwise_or: "({0} or {1})", aten.bitwise_not: "(not {0})",
}  # fmt: skip
_WITH_OPTIONS = {aten.add, aten.sub, aten.rsub, aten.clamp, aten.clamp_min, aten.clamp_max, aten.where}
_WITH_OPTIONS |= {
    aten.relu,
    aten.reciprocal,
    aten.sign,
    aten.masked_fill,
    aten.sigmoid,
    aten.pow,
    aten.heaviside,
    aten.hardtanh,
    aten.addcmul,
    aten.lerp,
}


def has_expression(function: Any) -> bool:
    """Tell whether an operation may have an expression; its types decide in the end."""
    packet = getattr(function, "overloadpacket", None)
    return packet in _ARITHMETIC or packet in _COMPARISONS or packet in _LOGIC or packet in _WITH_OPTIONS


def expression(function: Any, given: Sequence[Symbol | None], options: dict[str, Any], dtype: torch.dtype) -> str:
    """Return what an operation computes of numbers, as text.

    Args:
        function: The operator.
        given: Its operands and numbers, by position; None for what is left out.
        options: Its arguments by name.
        dtype: Of the result.

    Raises:
        NoExpressionError: Where there is none.

    Example:
        >>> x = Symbol("x", torch.float32)
        >>> expression(torch.ops.aten.mul.Tensor, [x, constant(0.5, torch.float32)], {}, torch.float32)
        '(x * np.float32(0.5))'
    """
    packet = function.overloadpacket
    if dtype not in _NAMES:
        raise NoExpressionError(str(dtype))
    known = [each for each in given if each is not None]
    if packet in _COMPARISONS:
        common = _common(known)
        return f"({cast(known[0], common)} {_COMPARISONS[packet]} {cast(known[1], common)})"
    if packet in _LOGIC:
        if any(each.dtype != torch.bool for each in known) and "bitwise" in str(packet):
            raise NoExpressionError(str(function))
        return _LOGIC[packet].format(*(cast(each, torch.bool) for each in known))
    if packet in {aten._to_copy, aten.clone, aten.alias, aten.detach, aten.lift_fresh, aten.lift_fresh_copy}:
        return cast(known[0], dtype)
    if packet in _ARITHMETIC:
        if any(value is not None for value in options.values()) or dtype == torch.bool:
            raise NoExpressionError(str(function))
        return _ARITHMETIC[packet].format(*(cast(each, dtype) for each in known))
    return _optional(packet, given, options, dtype)


def _common(given: Sequence[Symbol]) -> torch.dtype:
    dtypes = [each.dtype for each in given]
    common = dtypes[0]
    for dtype in dtypes[1:]:
        common = torch.promote_types(common, dtype)
    return torch.int64 if common == torch.bool else common


def _optional(packet: Any, given: Sequence[Symbol | None], options: dict[str, Any], dtype: torch.dtype) -> str:
    """Return the expression of an operation whose arguments decide what it computes."""
    if packet in _CHOICES:
        return _choice(packet, [each for each in given if each is not None], dtype)
    if dtype == torch.bool:
        raise NoExpressionError(str(packet))
    texts = [None if each is None else cast(each, dtype) for each in given]
    if packet in {aten.add, aten.sub, aten.rsub}:
        return _sum(packet, texts, options, dtype)
    if packet in {aten.clamp, aten.hardtanh, aten.clamp_min, aten.clamp_max}:
        return _clamped(packet, texts, options, dtype)
    if packet is aten.addcmul:
        return f"({texts[0]} + {constant(options.get('value', 1), dtype).text} * {texts[1]} * {texts[2]})"
    if packet is aten.pow and texts[1] == constant(2, dtype).text:
        return f"({texts[0]} * {texts[0]})"
    known = {
        aten.relu: "({zero} if {0} < {zero} else {0})",
        aten.sign: "({one} if {0} > {zero} else (-{one} if {0} < {zero} else {zero}))",
        aten.reciprocal: "({one} / {0})",
        aten.sigmoid: "({one} / ({one} + np.exp(-{0})))",
        aten.heaviside: "({one} if {0} > 0 else ({1} if {0} == 0 else {zero}))",
        aten.pow: "({0} ** {1})",
        aten.lerp: "({0} + {2} * ({1} - {0}))",
    }.get(packet)
    if known is None or None in texts:
        raise NoExpressionError(str(packet))
    return known.format(*texts, one=constant(1, dtype).text, zero=constant(0, dtype).text)


_CHOICES = {aten.where: (0, 1, 2), aten.masked_fill: (1, 2, 0)}


def _choice(packet: Any, given: Sequence[Symbol], dtype: torch.dtype) -> str:
    """Return one number or another, by a condition."""
    if len(given) != 3:
        raise NoExpressionError(str(packet))
    condition, chosen, other = (given[place] for place in _CHOICES[packet])
    return f"({cast(chosen, dtype)} if {cast(condition, torch.bool)} else {cast(other, dtype)})"


def _clamped(packet: Any, texts: list[str | None], options: dict[str, Any], dtype: torch.dtype) -> str:
    """Return a number between bounds, of which one may be missing."""
    if packet is aten.clamp_max:
        texts = [texts[0], None, texts[1]]
    if packet is aten.hardtanh:
        texts = [*texts, *(constant(v, dtype).text for v in (-1.0, 1.0)[len(texts) - 1 :])]
    low, high = (*texts[1:], None, None)[:2]
    low = low if low is not None else _named(options, "min", dtype)
    high = high if high is not None else _named(options, "max", dtype)
    text = f"max({texts[0]}, {low})" if low is not None else str(texts[0])
    return f"min({text}, {high})" if high is not None else text


def _named(options: dict[str, Any], name: str, dtype: torch.dtype) -> str | None:
    value = options.get(name)
    return None if value is None else constant(value, dtype).text


def _sum(packet: Any, texts: Sequence[str | None], options: dict[str, Any], dtype: torch.dtype) -> str:
    left, right = texts[0], texts[1]
    if packet is aten.rsub:
        left, right = right, left
    alpha = options.get("alpha", 1)
    if len(texts) > 2 or not isinstance(alpha, int | float):
        raise NoExpressionError(str(packet))
    scaled = right if alpha == 1 else f"({constant(alpha, dtype).text} * {right})"
    return f"({left} {'+' if packet is aten.add else '-'} {scaled})"
