"""Linear and convolution layers on quantised weights, with an exact integer path."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.functional.quantisers import (
    ActivationFormat,
    WeightFormat,
    activation_codes,
    code_range,
    largest_code,
    per_output,
    quant_activation,
    quantise_weight,
)

IntOrPair = int | tuple[int, int]

# Whole numbers below this are exact in float32, and so is every sum of them that stays below.
_EXACT_IN_FLOAT32 = 2**24


def quant_linear(  # noqa: PLR0913
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None = None,
    *,
    weight_format: WeightFormat = "int8",
    input_format: ActivationFormat | None = None,
    integer: bool = False,
    on_backward: OnBackward = "raise",
    name: str = "quant_linear",
) -> Tensor:
    r"""Apply a linear layer with quantised weights.

    .. math::
        y_o = s_o \sum_i q_{oi} x_i + b_o

    where :math:`q` are the codes of ``weight`` (:func:`~lightning_polystep.functional.quantise_weight`), :math:`s` is
    ``weight_scale``, :math:`x` is ``x``, quantised first if there is an ``input_format``, and :math:`b` is ``bias``.
    With ``integer``, and :math:`c` the codes of x and :math:`s_x` their scale,

    .. math::
        y_o = (s_x s_o) \sum_i q_{oi} c_i + b_o

    in which the sum is exact: whole numbers, added in float32 where no sum can reach :math:`2^{24}`, else in float64.

    Args:
        x: Float, ``(..., in)``.
        weight: Float, ``(out, in)``; quantised here.
        weight_scale: ``()`` or ``(out,)``; None for ``"float"``.
        bias: ``(out,)``, in float.
        weight_format: ``"int8"`` down to ``"int2"``, ``"ternary"``, ``"binary"``, or ``"float"``, which leaves the
            weights as they are.
        input_format: How to quantise ``x``; None leaves it as it is.
        integer: Whether to accumulate integer codes; needs an ``input_format`` and a quantised weight.
        on_backward: Whether a gradient that reaches a quantiser raises
            :class:`~lightning_polystep.functional.NonDifferentiableError` or is zero. The bias, and an input that is
            not quantised, do have a gradient, which autograd computes on its way to the weights.
        name: What errors call the operation.

    Returns:
        ``(..., out)`` in the dtype of ``x``.

    Raises:
        ValueError: If an option is misspelt, or ``integer`` lacks what it needs.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import quant_linear
        >>> weight, scale = torch.tensor([[0.9, -1.1, 0.2]]), torch.tensor([0.5])
        >>> quant_linear(torch.tensor([[1.0, 2.0, 4.0]]), weight, scale, weight_format="ternary")
        tensor([[-0.5000]])

    Source:
        Jacob et al. 2018, arXiv 1712.05877, eq. 4 with zero points of 0; Brevitas' ``QuantLinear``.
    """
    check_integer(integer, weight_format, input_format is not None, name)

    def product(values: Tensor, codes: Tensor) -> Tensor:
        return integer_linear(values, codes, accumulator) if integer else F.linear(values, codes)

    accumulator = _accumulator(weight, weight_format, input_format) if integer else weight.dtype
    codes = _codes_of(weight, weight_scale, weight_format, on_backward, name)
    return _scaled(product, x, codes, weight_scale, bias, 1, input_format, integer, on_backward, name)


def quant_conv2d(  # noqa: PLR0913
    x: Tensor,
    weight: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None = None,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
    weight_format: WeightFormat = "int8",
    input_format: ActivationFormat | None = None,
    integer: bool = False,
    on_backward: OnBackward = "raise",
    name: str = "quant_conv2d",
) -> Tensor:
    """Apply a 2d convolution with quantised weights; :func:`quant_linear` at every position.

    The integer path multiplies patches by a matrix instead of calling a convolution, because fast convolution
    algorithms (Winograd, FFT) compute with fractions and would not be exact.

    Args:
        x: Float, ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: Float, ``(out, C / groups, kH, kW)``; quantised here.
        weight_scale: ``()`` or ``(out,)``; None for ``"float"``.
        bias: ``(out,)``, in float.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As there, with zeros; ``"same"`` and ``"valid"`` too.
        dilation: As there.
        groups: As there.
        weight_format: As in :func:`quant_linear`.
        input_format: As there.
        integer: As there.
        on_backward: As there.
        name: What errors call the operation.

    Returns:
        ``(N, out, H', W')`` or ``(out, H', W')`` in the dtype of ``x``.

    Raises:
        ValueError: As :func:`quant_linear`.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import quant_conv2d
        >>> image, weight = torch.ones(1, 1, 3, 3), torch.full((1, 1, 2, 2), -0.3)
        >>> quant_conv2d(image, weight, torch.tensor(0.25), weight_format="binary")
        tensor([[[[-1., -1.],
                  [-1., -1.]]]])
    """
    check_integer(integer, weight_format, input_format is not None, name)
    geometry: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}

    def product(values: Tensor, codes: Tensor) -> Tensor:
        if integer:
            return integer_conv2d(values, codes, accumulator, **geometry)
        return F.conv2d(values, codes, **geometry)

    accumulator = _accumulator(weight, weight_format, input_format) if integer else weight.dtype
    codes = _codes_of(weight, weight_scale, weight_format, on_backward, name)
    return _scaled(product, x, codes, weight_scale, bias, 3, input_format, integer, on_backward, name)


def integer_linear(x: Tensor, weight: Tensor, accumulator: torch.dtype = torch.float64) -> Tensor:
    """Multiply whole numbers by whole numbers, exactly.

    Args:
        x: Codes ``(..., in)``, whole numbers in any dtype.
        weight: Codes ``(out, in)``.
        accumulator: Float dtype in which every sum is exact; see :func:`accumulator_dtype`.

    Returns:
        Sums of shape ``(..., out)`` in the dtype ``accumulator``, also under autocast.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import integer_linear
        >>> integer_linear(torch.tensor([[255, 255]]), torch.tensor([[127, -126]]))
        tensor([[255.]], dtype=torch.float64)
    """
    with torch.autocast(x.device.type, enabled=False):
        return F.linear(x.to(accumulator), weight.to(accumulator))


def integer_conv2d(
    x: Tensor,
    weight: Tensor,
    accumulator: torch.dtype = torch.float64,
    *,
    stride: IntOrPair = 1,
    padding: IntOrPair | str = 0,
    dilation: IntOrPair = 1,
    groups: int = 1,
) -> Tensor:
    """Convolve whole numbers with whole numbers, exactly: patches times a matrix.

    Args:
        x: Codes ``(N, C, H, W)`` or ``(C, H, W)``.
        weight: Codes ``(out, C / groups, kH, kW)``.
        accumulator: Float dtype in which every sum is exact; see :func:`accumulator_dtype`.
        stride: As in ``torch.nn.functional.conv2d``.
        padding: As there.
        dilation: As there.
        groups: As there.

    Returns:
        Sums of shape ``(N, out, H', W')`` or ``(out, H', W')`` in the dtype ``accumulator``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import integer_conv2d
        >>> integer_conv2d(torch.tensor([[[3, 4]]]), torch.tensor([[[[2]]]]))
        tensor([[[6., 8.]]], dtype=torch.float64)
    """
    if x.ndim == 3:
        options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
        return integer_conv2d(x.unsqueeze(0), weight, accumulator, **options).squeeze(0)
    kernel, step, spread = (weight.shape[2], weight.shape[3]), _pair(stride), _pair(dilation)
    padded = F.pad(x.to(accumulator), _margins(padding, kernel, spread))
    patches = F.unfold(padded, kernel, dilation=spread, stride=step)
    height, width = (
        (padded.shape[axis - 2] - spread[axis] * (kernel[axis] - 1) - 1) // step[axis] + 1 for axis in (0, 1)
    )
    matrices = weight.to(accumulator).reshape(groups, weight.shape[0] // groups, -1)
    with torch.autocast(x.device.type, enabled=False):
        sums = matrices @ patches.unflatten(1, (groups, -1))
    return sums.reshape(len(x), weight.shape[0], height, width)


def accumulator_dtype(input_max: int, weight_max: int, fan_in: int) -> torch.dtype:
    """Return the dtype that adds codes exactly: float32 where no sum can reach 2**24, else float64.

    Args:
        input_max: Largest size of an input's code.
        weight_max: Largest size of a weight's code.
        fan_in: Number of products in a sum.

    Example:
        >>> from lightning_polystep.functional.quantised import accumulator_dtype
        >>> accumulator_dtype(255, 127, 518), accumulator_dtype(255, 127, 519)
        (torch.float32, torch.float64)
    """
    return torch.float32 if input_max * weight_max * fan_in < _EXACT_IN_FLOAT32 else torch.float64


def check_integer(integer: bool, weight_format: str, has_input_format: bool, name: str) -> None:
    """Refuse an integer path without integers.

    Args:
        integer: Whether the integer path is wanted.
        weight_format: Not to be ``"float"`` there.
        has_input_format: To be true there.
        name: What the error calls the layer.

    Raises:
        ValueError: If something that it needs is missing.
    """
    if integer and weight_format == "float":
        raise ValueError(f'{name}: integer needs quantised weights, so weight_format must not be "float".')
    if integer and not has_input_format:
        raise ValueError(f"{name}: integer needs quantised inputs, so give it an input quantiser.")


def _accumulator(weight: Tensor, weight_format: WeightFormat, input_format: ActivationFormat | None) -> torch.dtype:
    assert input_format is not None
    low, high = code_range(input_format.bits, input_format.signed, input_format.narrow_range)
    return accumulator_dtype(max(-low, high), largest_code(weight_format), weight[0].numel())


def _codes_of(
    weight: Tensor, scale: Tensor | None, weight_format: WeightFormat, on_backward: OnBackward, name: str
) -> Tensor:
    if weight_format == "float":
        return weight
    if scale is None:
        raise ValueError(f'{name}: weight_format "{weight_format}" needs a weight_scale.')
    return quantise_weight(weight, scale, weight_format, on_backward=on_backward, name=name)


def _scaled(  # noqa: PLR0913, PLR0917
    product: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    codes: Tensor,
    weight_scale: Tensor | None,
    bias: Tensor | None,
    output_dims: int,
    input_format: ActivationFormat | None,
    integer: bool,
    on_backward: OnBackward,
    name: str,
) -> Tensor:
    """Quantise the input, multiply, scale, add the bias; the output channel is ``output_dims`` from the end."""
    if input_format is None:
        output = product(x, codes)
    elif integer:
        output = product(activation_codes(x, *input_format, on_backward=on_backward, name=name), codes)
    else:
        output = product(quant_activation(x, *input_format, on_backward=on_backward, name=name), codes)
    if weight_scale is not None:
        # The sums may have been exact in float32 already; what float64 inputs are scaled with is float64.
        output = output.to(torch.promote_types(output.dtype, x.dtype))
        scale = per_output(weight_scale, output_dims, output.dtype)
        if integer and input_format is not None:
            scale = input_format.scale.to(output.dtype) * scale
        output = output * scale
    if integer:
        output = output.to(x.dtype)
    return output if bias is None else output + per_output(bias, output_dims, output.dtype)


def _pair(value: IntOrPair) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _margins(padding: IntOrPair | str, kernel: tuple[int, int], dilation: tuple[int, int]) -> list[int]:
    """Return the zeros to the left, right, top and bottom."""
    if isinstance(padding, str):
        totals = [dilation[axis] * (kernel[axis] - 1) if padding == "same" else 0 for axis in (1, 0)]
        return [margin for total in totals for margin in (total // 2, total - total // 2)]
    vertical, horizontal = _pair(padding)
    return [horizontal, horizontal, vertical, vertical]
