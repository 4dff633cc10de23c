"""Quantisers of weights and activations with frozen scales: integer codes, and the real numbers that they stand for."""

from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward, non_differentiable

WeightFormat = Literal["int8", "int7", "int6", "int5", "int4", "int3", "int2", "ternary", "binary", "float"]
Granularity = Literal["per_channel", "per_tensor"]

_MOST_BITS = 8
_LARGEST_CODE = {f"int{bits}": 2 ** (bits - 1) - 1 for bits in range(2, _MOST_BITS + 1)} | {"ternary": 1, "binary": 1}


class ActivationFormat(NamedTuple):
    """How an activation is quantised: its step, its bits, whether codes can be negative, and whether symmetric then."""

    scale: Tensor
    bits: int = 8
    signed: bool = False
    narrow_range: bool = True


def quantise_weight(
    weight: Tensor,
    scale: Tensor,
    weight_format: WeightFormat = "int8",
    *,
    on_backward: OnBackward = "raise",
    name: str = "quantise_weight",
) -> Tensor:
    r"""Return the integer code of every weight.

    .. math::
        q = \operatorname{clamp}(\operatorname{round}(w / s), -m, m)

    where :math:`w` is ``weight``, :math:`s` is ``scale``, and :math:`m` is 127 for ``"int8"``, 7 for ``"int4"`` and so
    on (a narrow range, so that codes are symmetric) and 1 for ``"ternary"``; a tie rounds to the even code.
    ``"binary"`` is the sign of w, 1 at a tie, and ignores the scale. The quantised weight is :math:`s q`. As s is given
    and not computed from w, a change of one weight changes its own code alone.

    Args:
        weight: Float, ``(out, ...)``.
        scale: ``()``, or ``(out,)`` with one value per output channel; above 0.
        weight_format: ``"int8"`` down to ``"int2"``, ``"ternary"`` or ``"binary"``.
        on_backward: Whether a gradient raises :class:`~lightning_polystep.functional.NonDifferentiableError` or is
            zero.
        name: What errors call the operation.

    Returns:
        Whole numbers in the shape and dtype of ``weight``.

    Raises:
        ValueError: If an option is misspelt, or ``scale`` has another shape.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import quantise_weight
        >>> quantise_weight(torch.tensor([[0.26, -0.1, 9.0]]), torch.tensor([0.05]))
        tensor([[  5.,  -2., 127.]])

    Source:
        Jacob et al. 2018, arXiv 1712.05877 (int8, symmetric as in Brevitas' ``Int8WeightPerChannelFloat``); Ma et al.
        2024, arXiv 2402.17764 (ternary, "absmean"); Rastegari et al. 2016, arXiv 1603.05279 (binary).
    """
    check_weight_format(weight_format, "per_channel", name)
    if weight_format == "float":
        raise ValueError(f'{name}: weight_format "float" has no codes.')
    if scale.shape not in (torch.Size([]), weight.shape[:1]):
        raise ValueError(
            f"{name}: scale of shape {tuple(scale.shape)} is neither () nor one per output channel, "
            f"({weight.shape[0]},)."
        )
    forward = partial(_weight_codes, weight_format=weight_format)
    return non_differentiable(forward, weight, scale, on_backward=on_backward, name=name)


def weight_scale(
    weight: Tensor, weight_format: WeightFormat = "int8", granularity: Granularity = "per_channel"
) -> Tensor:
    r"""Return the scale that fits a weight: max \|w\| / 127 for int8, mean \|w\| for ternary and binary.

    Fewer bits have a smaller largest code than 127: 7 for int4, 1 for int2.

    Args:
        weight: Float, ``(out, ...)``.
        weight_format: ``"int8"`` down to ``"int2"``, ``"ternary"`` or ``"binary"``.
        granularity: ``"per_channel"`` looks at each output channel alone, ``"per_tensor"`` at all of them.

    Returns:
        ``(out,)`` or ``()``, without a gradient. Where all weights are 0, the scale for weights of size 1.

    Raises:
        ValueError: If an option is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import weight_scale
        >>> weight_scale(torch.tensor([[1.0, -3.0], [0.5, 0.5]]), "ternary")
        tensor([2.0000, 0.5000])

    Source:
        As :func:`quantise_weight`.
    """
    check_weight_format(weight_format, granularity, "weight_scale")
    if weight_format == "float":
        raise ValueError('weight_scale: weight_format "float" has no scale.')
    sizes = weight.detach().abs()
    sizes = sizes.flatten(1) if granularity == "per_channel" else sizes.flatten()
    size = sizes.amax(-1) if is_integer_format(weight_format) else sizes.mean(-1)
    return torch.where(size > 0, size, torch.ones_like(size)) / _LARGEST_CODE[weight_format]


def quant_activation(
    x: Tensor,
    scale: Tensor,
    bits: int = 8,
    signed: bool = False,
    narrow_range: bool = True,
    *,
    on_backward: OnBackward = "raise",
    name: str = "quant_activation",
) -> Tensor:
    r"""Round activations to a few multiples of a scale; unsigned, it is a quantised ReLU.

    .. math::
        y = s \operatorname{clamp}(\operatorname{round}(x / s), l, h)

    where :math:`s` is ``scale`` and the codes go from :math:`l = 0` to :math:`h = 2^b - 1` with b ``bits``, or, when
    ``signed``, from :math:`-h` to :math:`h = 2^{b-1} - 1`. A tie rounds to the even code.

    Args:
        x: Float, any shape.
        scale: ``()``, above 0.
        bits: 1 to 8; at least 2 when signed.
        signed: Whether codes can be negative.
        narrow_range: Whether signed codes are symmetric, without the one below.
        on_backward: Whether a gradient raises :class:`~lightning_polystep.functional.NonDifferentiableError` or is
            zero.
        name: What errors call the operation.

    Returns:
        Multiples of ``scale`` in the shape and dtype of ``x``; NaN stays NaN.

    Raises:
        TypeError: If ``x`` is not floating point.
        ValueError: If ``bits`` is out of range or ``on_backward`` is misspelt.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import quant_activation
        >>> quant_activation(torch.tensor([-1.0, 0.3, 0.8, 9.0]), torch.tensor(0.5), bits=2)
        tensor([0.0000, 0.5000, 1.0000, 1.5000])

    Source:
        Jacob et al. 2018, arXiv 1712.05877; Brevitas' ``Uint8ActPerTensorFloat`` and ``Int8ActPerTensorFloat`` with a
        narrow range.
    """
    codes = activation_codes(x, scale, bits, signed, narrow_range, on_backward=on_backward, name=name)
    return codes * scale.to(x.dtype)


def activation_codes(
    x: Tensor,
    scale: Tensor,
    bits: int = 8,
    signed: bool = False,
    narrow_range: bool = True,
    *,
    on_backward: OnBackward = "raise",
    name: str = "activation_codes",
) -> Tensor:
    """Return the integer codes of :func:`quant_activation`, whole numbers in the shape and dtype of ``x``.

    Args:
        x: As there.
        scale: As there.
        bits: As there.
        signed: As there.
        narrow_range: As there.
        on_backward: As there.
        name: As there.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import activation_codes
        >>> activation_codes(torch.tensor([-1.0, 0.3, 0.8, 9.0]), torch.tensor(0.5), bits=2)
        tensor([0., 1., 2., 3.])
    """
    check_activation_options(bits, signed, on_backward, name)
    if not x.is_floating_point():
        raise TypeError(f"{name}: x must be floating point, got {x.dtype}; call .float() on it.")
    low, high = code_range(bits, signed, narrow_range)
    return non_differentiable(partial(_codes, low=low, high=high), x, scale, on_backward=on_backward, name=name)


def activation_scale(values: Tensor, bits: int = 8, signed: bool = False, percentile: float = 99.9) -> Tensor:
    """Return the scale that puts a percentile of the values at the largest code.

    Args:
        values: Float, a sample of the activations.
        bits: As in :func:`quant_activation`.
        signed: As there; the sizes of signed values are counted.
        percentile: Share of the values, in percent, that are not clipped; the largest value where it would be 0.

    Returns:
        ``()``; the scale for values up to 1 where all of them are 0.

    Raises:
        ValueError: If ``percentile`` is not in (0, 100], or there is no finite value.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import activation_scale
        >>> activation_scale(torch.tensor([-8.0, 1.0, 7.5]), bits=4, percentile=100)
        tensor(0.5000)
    """
    if not 0 < percentile <= 100:
        raise ValueError(f"activation_scale: percentile must be above 0 and at most 100, got {percentile}.")
    sizes = values.detach().float().flatten()
    sizes = sizes[sizes.isfinite()]
    if len(sizes) == 0:
        raise ValueError("activation_scale: there is no finite value to take a scale from.")
    sizes = sizes.abs() if signed else sizes.clamp(min=0)
    size = torch.quantile(sizes, percentile / 100)
    size = torch.where(size > 0, size, sizes.max())
    return torch.where(size > 0, size, torch.ones_like(size)) / code_range(bits, signed)[1]


def code_range(bits: int, signed: bool, narrow_range: bool = True) -> tuple[int, int]:
    """Return the smallest and the largest code of an activation; signed codes are symmetric in a narrow range."""
    high = 2 ** (bits - 1) - 1 if signed else 2**bits - 1
    low = -high if narrow_range else -high - 1
    return low if signed else 0, high


def is_integer_format(weight_format: str) -> bool:
    """Tell whether weights have integer codes up to that of the largest weight: int8 down to int2."""
    return weight_format.startswith("int")


def largest_code(weight_format: WeightFormat) -> int:
    """Return the largest code of a weight."""
    return _LARGEST_CODE[weight_format]


def per_output(scale: Tensor, ndim: int, dtype: torch.dtype) -> Tensor:
    """Shape a scale, ``()`` or ``(out,)``, so that it multiplies ``ndim`` dimensions whose first is ``out``."""
    return scale.to(dtype).view(-1, *[1] * (ndim - 1)) if scale.ndim else scale.to(dtype)


def check_weight_format(weight_format: str, granularity: str, name: str) -> None:
    """Refuse a misspelt option.

    Args:
        weight_format: To be ``"int8"`` down to ``"int2"``, ``"ternary"``, ``"binary"`` or ``"float"``.
        granularity: To be ``"per_channel"`` or ``"per_tensor"``.
        name: What the error calls the operation.

    Raises:
        ValueError: If either is something else.
    """
    if weight_format not in (*_LARGEST_CODE, "float"):
        raise ValueError(
            f'{name}: weight_format must be "int8" down to "int2", "ternary", "binary" or "float", got '
            f"{weight_format!r}."
        )
    if granularity not in ("per_channel", "per_tensor"):
        raise ValueError(f'{name}: granularity must be "per_channel" or "per_tensor", got {granularity!r}.')


def check_activation_options(bits: int, signed: bool, on_backward: str, name: str) -> None:
    """Refuse what no input could make right.

    Args:
        bits: To be 1 to 8, at least 2 when signed.
        signed: Whether codes can be negative.
        on_backward: To be ``"raise"`` or ``"zero"``.
        name: What the error calls the operation.

    Raises:
        ValueError: If ``bits`` or ``on_backward`` is something else.
    """
    fewest = 2 if signed else 1
    if bits not in range(fewest, _MOST_BITS + 1):
        kind = "signed" if signed else "unsigned"
        raise ValueError(f"{name}: bits must be {fewest} to {_MOST_BITS} for {kind} codes, got {bits!r}.")
    check_on_backward(on_backward, name)


def _weight_codes(weight: Tensor, scale: Tensor, weight_format: WeightFormat) -> Tensor:
    if weight_format == "binary":
        return 2 * (weight >= 0).to(weight.dtype) - 1
    high = _LARGEST_CODE[weight_format]
    return _codes(weight, per_output(scale, weight.ndim, weight.dtype), -high, high)


def _codes(x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
    return (x / scale.to(x.dtype)).round().clamp(low, high)
