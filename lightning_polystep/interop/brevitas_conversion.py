"""Convert sequential Brevitas networks to this package's layers with frozen scales, and back."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.functional.quantisers import WeightFormat, per_output
from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.interop.brevitas import check_calibrated, check_scale
from lightning_polystep.interop.snntorch_conversion import ConversionError, leaves_of
from lightning_polystep.layers import QuantActivation, QuantConv2d, QuantLinear, Sign, StepFunction

# What Brevitas calls the quantisers whose codes this package's weights have, by their bit width.
_FORMATS: dict[tuple[str, int], WeightFormat] = {
    ("RescalingIntQuant", 8): "int8",
    ("RescalingIntQuant", 2): "ternary",
    ("TernaryQuant", 2): "ternary",
    ("BinaryQuant", 1): "binary",
    ("ClampedBinaryQuant", 1): "binary",
}
_FEWEST_SIGNED_BITS = 2
_MOST_BITS = 8


def from_brevitas(network: nn.Module) -> nn.Sequential:
    """Convert an ``nn.Sequential`` of Brevitas layers to layers of this package, in evaluation mode.

    ``QuantLinear``, ``QuantConv2d``, ``QuantReLU`` and ``QuantIdentity`` become :class:`QuantLinear`,
    :class:`QuantConv2d` and :class:`QuantActivation` (:class:`Sign` for one bit) with the scales that the proxies have
    now, frozen; other layers are copied. No tensor is shared. The codes of the weights are equal bit for bit, and so
    are those of an activation on equal inputs; outputs of a Linear are equal up to rounding, because scales multiply
    sums here and weights there.

    Args:
        network: As Brevitas' users write it, calibrated or trained.

    Returns:
        The converted network.

    Raises:
        ConversionError: If a layer has no counterpart here that computes the same, by name: other bit widths of
            weights, zero points, a quantised bias, other layers, a class with a ``forward`` of its own.
        UncalibratedScaleError: If a scale was never calibrated, or is not a positive finite number.

    Example:
        >>> import brevitas.nn, torch
        >>> network = nn.Sequential(brevitas.nn.QuantLinear(4, 3, bias=True), brevitas.nn.QuantReLU(bit_width=4))
        >>> _ = network(torch.randn(64, 4))  # in training mode: calibrates the activation
        >>> from_brevitas(network)
        Sequential(
          (0): QuantLinear(in_features=4, out_features=3, bias=True, weight_format='int8', granularity='per_tensor')
          (1): QuantActivation(bits=4, signed=False)
        )

    Source:
        Brevitas 0.13.4, ``brevitas/core/quant``.
    """
    if type(network).forward is not nn.Sequential.forward:
        raise ConversionError(
            f"{type(network).__name__} has a forward of its own, which cannot be read: convert an nn.Sequential, or "
            'train the network as it is with Trainer(strategy="polystep").'
        )
    # A copy, because asking a proxy for its scale may count as a call.
    leaves = leaves_of(deepcopy(network).eval())
    with torch.no_grad():
        return nn.Sequential(*[layer for leaf in leaves for layer in _converted(leaf)])


def to_brevitas(network: nn.Module) -> nn.Sequential:
    """Convert back: an ``nn.Sequential`` of quantised layers to Brevitas, with the frozen scales as constants.

    Args:
        network: Of :class:`QuantLinear`, :class:`QuantConv2d`, :class:`QuantActivation` and any layers of torch.

    Returns:
        The Brevitas network, in evaluation mode; no tensor is shared.

    Raises:
        ConversionError: For other layers of this package, and a class with a ``forward`` of its own.
        NotCalibratedError: If an activation has no scale.

    Example:
        >>> import torch
        >>> network = nn.Sequential(QuantLinear(4, 3), QuantActivation(4, scale=0.1))
        >>> to_brevitas(network)(torch.randn(2, 4)).shape
        torch.Size([2, 3])
    """
    return nn.Sequential(*[layer for leaf in leaves_of(network) for layer in _exported(leaf)]).eval()


def _converted(leaf: nn.Module) -> Iterator[nn.Module]:
    from brevitas import nn as qnn

    layer: Any = leaf
    if not comes_from(layer, "brevitas"):
        yield layer
    elif type(layer) in {qnn.QuantReLU, qnn.QuantIdentity}:
        yield from _activation(layer, layer.input_quant)
        if not layer.act_quant.is_quant_enabled and type(layer) is qnn.QuantReLU:
            yield nn.ReLU()
        yield from _activation(layer, layer.act_quant)
    elif type(layer) in {qnn.QuantLinear, qnn.QuantConv2d}:
        if layer.bias_quant.is_quant_enabled:
            raise ConversionError(f"{type(layer).__name__} with a quantised bias has no counterpart here.")
        yield from _activation(layer, layer.input_quant)
        yield _weighted(layer)
        yield from _activation(layer, layer.output_quant)
    else:
        raise ConversionError(f"{type(layer).__name__} has no counterpart here that computes the same.")


def _weighted(layer: Any) -> nn.Module:
    proxy = layer.weight_quant
    kind, options = _geometry(layer)
    if not proxy.is_quant_enabled:
        converted = kind(**options, weight_format="float")
        codes = None
    else:
        check_scale("the weight", proxy.scale())
        scale = proxy.scale().flatten()
        if bool((proxy.zero_point() != 0).any()):
            raise ConversionError(f"{type(layer).__name__} with a zero point has no counterpart here.")
        quantiser, bits = type(proxy.tensor_quant).__name__, int(proxy.bit_width())
        weight_format = _FORMATS.get((quantiser, bits))
        symmetric = quantiser != "RescalingIntQuant" or (proxy.is_signed and proxy.is_narrow_range)
        if weight_format is None or not symmetric or scale.numel() not in {1, len(layer.weight)}:
            raise ConversionError(
                f"{type(layer).__name__} with weights of {quantiser}, {bits} bits and {scale.numel()} scales has no "
                "counterpart here, where weights are int8 in a narrow range, ternary or binary, with one scale or one "
                "per output."
            )
        converted = kind(
            **options, weight_format=weight_format, granularity="per_tensor" if scale.numel() == 1 else "per_channel"
        )
        converted.weight_scale = scale.squeeze() if scale.numel() == 1 else scale
        codes = (
            layer.quant_weight().value / per_output(converted.weight_scale, layer.weight.ndim, scale.dtype)
        ).round()
    converted.weight.copy_(layer.weight)
    if layer.bias is not None:
        converted.bias.copy_(layer.bias)
    if codes is not None and not torch.equal(codes, converted.weight_codes()):
        raise ConversionError(f"{type(layer).__name__} rounds its weights otherwise (its range, or float_to_int).")
    return converted


def _geometry(layer: Any) -> tuple[Any, dict[str, Any]]:
    if isinstance(layer, nn.Linear):
        return QuantLinear, {
            "in_features": layer.in_features,
            "out_features": layer.out_features,
            "bias": layer.bias is not None,
        }
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "padding_mode")
    return QuantConv2d, {**{name: getattr(layer, name) for name in names}, "bias": layer.bias is not None}


def _activation(layer: Any, proxy: Any) -> Iterator[StepFunction]:
    if not proxy.is_quant_enabled:
        return
    name, quantiser = type(layer).__name__, proxy.fused_activation_quant_proxy.tensor_quant
    check_calibrated(name, quantiser.scaling_impl)
    scale, bits = proxy.scale(), int(proxy.bit_width())
    check_scale(name, scale)
    if type(quantiser).__name__ in {"BinaryQuant", "ClampedBinaryQuant"} and bool((scale == 1).all()):
        yield Sign()
        return
    fewest = _FEWEST_SIGNED_BITS if proxy.is_signed else 1
    plain = type(quantiser).__name__ == "RescalingIntQuant" and fewest <= bits <= _MOST_BITS
    unsigned_narrow = not proxy.is_signed and proxy.is_narrow_range
    if not plain or unsigned_narrow or scale.numel() != 1 or bool((proxy.zero_point() != 0).any()):
        raise ConversionError(
            f"{name} with {type(quantiser).__name__}, {bits} bits, {scale.numel()} scales and zero point "
            f"{proxy.zero_point().flatten().tolist()} has no counterpart here, where an activation has 1 to 8 bits, "
            "one scale and the zero point 0."
        )
    converted = QuantActivation(bits, bool(proxy.is_signed), scale=1.0)
    converted.narrow_range = bool(proxy.is_narrow_range) or not converted.signed
    converted.scale = scale.reshape(()).clone()
    _check_codes(name, proxy, converted)
    yield converted


def _check_codes(name: str, proxy: Any, converted: QuantActivation) -> None:
    """Refuse another rounding: compare on every tie and both ends."""
    most = 2.0**converted.bits + 1
    ties = torch.arange(-most, most, 0.25, device=converted.scale.device) * converted.scale
    value = proxy(ties)
    if not torch.equal(getattr(value, "value", value), converted(ties)):
        raise ConversionError(f"{name} rounds its inputs otherwise (float_to_int).")


def _exported(leaf: nn.Module) -> Iterator[nn.Module]:
    if isinstance(leaf, QuantLinear | QuantConv2d):
        if leaf.input_quant is not None:
            yield _act(leaf.input_quant)
        yield _weighted_export(leaf)
    elif type(leaf) is QuantActivation:
        yield _act(leaf)
    elif comes_from(leaf, "lightning_polystep"):
        raise ConversionError(f"{leaf} has no counterpart in Brevitas that computes the same.")
    else:
        yield deepcopy(leaf)


def _weighted_export(leaf: QuantLinear | QuantConv2d) -> nn.Module:
    from brevitas import nn as qnn
    from brevitas import quant
    from brevitas.core.utils import SingleArgStatelessBuffer

    kinds = {
        "int8": quant.Int8WeightPerTensorFloat,
        "ternary": quant.SignedTernaryWeightPerTensorConst,
        "binary": quant.SignedBinaryWeightPerTensorConst,
        "float": None,
    }
    _, options = _geometry(leaf)
    options["weight_quant"] = kinds[leaf.weight_format]
    if leaf.weight_scale is not None:
        scale = leaf.weight_scale.detach().clone()
        scale = per_output(scale, leaf.weight.ndim, scale.dtype) if scale.ndim else scale
        options |= {"weight_scaling_impl_type": "const", "weight_scaling_init": scale, "weight_scaling_const": scale}
    if leaf.weight_format == "int8":
        # The constant is then the scale itself, and not the largest code times it, which would round.
        options["weight_int_scaling_impl"] = SingleArgStatelessBuffer(1.0)
    kind = qnn.QuantLinear if isinstance(leaf, QuantLinear) else qnn.QuantConv2d
    exported: Any = kind(**options)
    exported.to(leaf.weight)
    with torch.no_grad():
        exported.weight.copy_(leaf.weight)
        if leaf.bias is not None:
            exported.bias.copy_(leaf.bias)
    return exported


def _act(layer: QuantActivation) -> nn.Module:
    from brevitas import nn as qnn
    from brevitas import quant
    from brevitas.core.utils import SingleArgStatelessBuffer

    kind = qnn.QuantIdentity if layer.signed else qnn.QuantReLU
    scale: Tensor = layer.format_for(layer.scale).scale.detach().clone()
    return kind(
        act_quant=quant.Int8ActPerTensorFloat if layer.signed else quant.Uint8ActPerTensorFloat,
        bit_width=layer.bits,
        narrow_range=layer.signed and layer.narrow_range,
        scaling_impl_type="const",
        scaling_init=scale,
        int_scaling_impl=SingleArgStatelessBuffer(1.0),
    )
