"""Convert sequential Brevitas networks to this package's layers, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from copy import deepcopy
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_polystep.functional.quantisers import WeightFormat, is_integer_format, per_output, weight_scale
from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.interop.brevitas import check_calibrated, check_scale
from lightning_polystep.interop.folding import fold_batch_norm as fold
from lightning_polystep.interop.snntorch_conversion import ConversionError, leaves_of, own_forward
from lightning_polystep.layers import QuantActivation, QuantConv2d, QuantLinear, Sign, StepFunction

# What Brevitas calls the quantisers whose codes this package's weights have, by their bit width.
_FORMATS: dict[tuple[str, int], WeightFormat] = {
    **{("RescalingIntQuant", bits): cast("WeightFormat", f"int{bits}") for bits in range(2, 9)},
    ("TernaryQuant", 2): "ternary",
    ("BinaryQuant", 1): "binary",
    ("ClampedBinaryQuant", 1): "binary",
}
_FEWEST_SIGNED_BITS = 2
_MOST_BITS = 8
_AS_IT_IS = 'or train the network as it is with Trainer(strategy="polystep")'


def from_brevitas(network: nn.Module, *, fold_batch_norm: bool = False) -> nn.Sequential:
    """Convert an ``nn.Sequential`` of Brevitas layers to layers of this package, each in the mode that it is in.

    ``QuantLinear``, ``QuantConv2d``, ``QuantReLU`` and ``QuantIdentity`` become :class:`QuantLinear`,
    :class:`QuantConv2d` and :class:`QuantActivation` (:class:`Sign` for one bit) with the scales that the proxies have
    now; other layers are copied. No tensor is shared. The codes of the weights are equal bit for bit, and so are those
    of an activation on equal inputs; outputs of a Linear are equal up to rounding, because scales multiply sums here
    and weights there.

    Scales follow (``follow=True``) where Brevitas' do: those of weights that are taken from the largest weight, and
    those of activations within the batches in which Brevitas collects statistics. Others are frozen: constants, and
    learned scales, which :class:`~lightning_polystep.callbacks.Calibrate` can move.

    Args:
        network: As Brevitas' users write it, calibrated or trained.
        fold_batch_norm: Whether batch normalisation behind a layer becomes part of it; see
            :func:`~lightning_polystep.interop.fold_batch_norm`.

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
          (0): QuantLinear(in_features=4, out_features=3, bias=True, weight_format='int8', granularity='per_tensor',
            follow=True)
          (1): QuantActivation(bits=4, signed=False, follow=True)
        )

    Source:
        Brevitas 0.13.4, ``brevitas/core/quant``.
    """
    if type(network).forward is not nn.Sequential.forward:
        raise own_forward(network)
    # A copy, because asking a proxy for its scale may count as a call.
    copied = deepcopy(network).eval()
    modes = {mine: part.training for mine, part in zip(copied.modules(), network.modules(), strict=True)}
    converted = nn.Sequential()
    with torch.no_grad():
        for leaf in leaves_of(copied):
            for layer in _converted(leaf):
                converted.append(layer if layer is leaf else layer.train(modes[leaf]))
    for part, mode in modes.items():
        part.training = mode
    converted.training = network.training
    return fold(converted) if fold_batch_norm else converted


def to_brevitas(network: nn.Module) -> nn.Sequential:
    """Convert back: an ``nn.Sequential`` of quantised layers to Brevitas.

    Scales are constants there, but for those of integer weights with ``follow=True``, which follow there too.

    Args:
        network: Of :class:`QuantLinear`, :class:`QuantConv2d`, :class:`QuantActivation`, :class:`Sign` and any layers
            of torch.

    Returns:
        The Brevitas network, each layer in the mode that it is in; no tensor is shared.

    Raises:
        ConversionError: For other layers of this package, and a class with a ``forward`` of its own.
        NotCalibratedError: If an activation has no scale.

    Example:
        >>> import torch
        >>> network = nn.Sequential(QuantLinear(4, 3), QuantActivation(4, scale=0.1))
        >>> to_brevitas(network)(torch.randn(2, 4)).shape
        torch.Size([2, 3])
    """
    exported = nn.Sequential(*[layer.train(leaf.training) for leaf in leaves_of(network) for layer in _exported(leaf)])
    exported.training = network.training
    return exported


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
            raise ConversionError(
                f"{type(layer).__name__} with a quantised bias has no counterpart here: build it with bias_quant=None, "
                f"{_AS_IT_IS}."
            )
        yield from _activation(layer, layer.input_quant)
        yield _weighted(layer)
        yield from _activation(layer, layer.output_quant)
    else:
        raise ConversionError(
            f"{type(layer).__name__} has no counterpart here that computes the same: convert the parts before and "
            f"behind it, {_AS_IT_IS}."
        )


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
            raise ConversionError(
                f"{type(layer).__name__} with a zero point has no counterpart here: use a symmetric quantiser such as "
                f"brevitas.quant.Int8WeightPerChannelFloat, {_AS_IT_IS}."
            )
        quantiser, bits = type(proxy.tensor_quant).__name__, int(proxy.bit_width())
        weight_format = _FORMATS.get((quantiser, bits))
        symmetric = quantiser != "RescalingIntQuant" or (proxy.is_signed and proxy.is_narrow_range)
        if weight_format is None or not symmetric or scale.numel() not in {1, len(layer.weight)}:
            raise ConversionError(
                f"{type(layer).__name__} with weights of {quantiser}, {bits} bits and {scale.numel()} scales has no "
                "counterpart here, where weights have 2 to 8 bits in a narrow range, or are ternary or binary, with "
                f"one scale or one per output: build it with weight_narrow_range=True, {_AS_IT_IS}."
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
        raise ConversionError(
            f"{type(layer).__name__} rounds its weights otherwise (its range, or float_to_int): use "
            f'float_to_int_impl_type="round", {_AS_IT_IS}.'
        )
    if codes is not None:
        _keep_rule(layer, converted)
    return converted


def _keep_rule(layer: Any, converted: QuantLinear | QuantConv2d) -> None:
    """Let a scale follow the weights where Brevitas' does, by the one rule that is known here."""
    rule = type(layer.weight_quant.tensor_quant.scaling_impl).__name__
    scale, weight_format = converted.weight_scale, converted.weight_format
    assert scale is not None
    # What few codes multiply is a constant of a design; of more bits it may be what an export made of a scale.
    converted.scale_given = rule == "ConstScaling" and weight_format in {"int2", "ternary", "binary"}
    if rule != "StatsFromParameterScaling":
        return
    known = is_integer_format(weight_format)
    known = known and torch.allclose(weight_scale(converted.weight, weight_format, converted.granularity), scale)
    converted.follow = known
    if not known:
        warnings.warn(
            f"{type(layer).__name__}: Brevitas takes the scale of its weights from other statistics than the largest "
            "weight, or rounds it; it is frozen here as it is, and weights that outgrow it will be clipped. Let "
            "Calibrate(follow=True) move it, convert after training, or train the network as it is.",
            stacklevel=4,
        )


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
    if type(quantiser).__name__ in {"BinaryQuant", "ClampedBinaryQuant"}:
        if not bool((scale == 1).all()):
            raise ConversionError(
                f"{name} with one bit and a scale of {scale.flatten().tolist()} has no counterpart here, where a sign "
                "is 1 or -1: set max_val (or scaling_const) to 1, the layer behind has a scale of its own."
            )
        yield Sign()
        return
    fewest = _FEWEST_SIGNED_BITS if proxy.is_signed else 1
    plain = type(quantiser).__name__ == "RescalingIntQuant" and fewest <= bits <= _MOST_BITS
    unsigned_narrow = not proxy.is_signed and proxy.is_narrow_range
    if not plain or unsigned_narrow or scale.numel() != 1 or bool((proxy.zero_point() != 0).any()):
        raise ConversionError(
            f"{name} with {type(quantiser).__name__}, {bits} bits, {scale.numel()} scales and zero point "
            f"{proxy.zero_point().flatten().tolist()} has no counterpart here, where an activation has 1 to 8 bits, "
            f"one scale and the zero point 0: use QuantReLU or a symmetric QuantIdentity per tensor, {_AS_IT_IS}."
        )
    follow = _is_collecting(quantiser.scaling_impl)
    converted = QuantActivation(bits, bool(proxy.is_signed), scale=1.0, follow=follow)
    converted.narrow_range = bool(proxy.is_narrow_range) or not converted.signed
    converted.scale = scale.reshape(()).clone()
    converted.scale_given = type(quantiser.scaling_impl).__name__ == "ConstScaling"
    _check_codes(name, proxy, converted)
    yield converted


def _is_collecting(scaling: Any) -> bool:
    """Tell whether the scale of an activation is one of statistics that go on, and no constant or learned number."""
    if type(scaling).__name__ == "RuntimeStatsScaling":
        return True
    return bool(getattr(scaling, "counter", 0) < getattr(scaling, "collect_stats_steps", 0))


def _check_codes(name: str, proxy: Any, converted: QuantActivation) -> None:
    """Refuse another rounding: compare on every tie and both ends."""
    most = 2.0**converted.bits + 1
    ties = torch.arange(-most, most, 0.25, device=converted.scale.device) * converted.scale
    value = proxy(ties)
    if not torch.equal(getattr(value, "value", value), converted(ties)):
        raise ConversionError(
            f'{name} rounds its inputs otherwise (float_to_int): use float_to_int_impl_type="round", {_AS_IT_IS}.'
        )


def _exported(leaf: nn.Module) -> Iterator[nn.Module]:
    if isinstance(leaf, QuantLinear | QuantConv2d):
        if leaf.input_quant is not None:
            yield _act(leaf.input_quant)
        yield _weighted_export(leaf)
    elif type(leaf) is QuantActivation:
        yield _act(leaf)
    elif type(leaf) is Sign and leaf.positive_on == "ge":
        yield _sign()
    elif comes_from(leaf, "lightning_polystep"):
        cure = ': use positive_on="ge"' if type(leaf) is Sign else ": export the parts before and behind it"
        raise ConversionError(f"{leaf} has no counterpart in Brevitas that computes the same{cure}.")
    else:
        yield deepcopy(leaf)


def _weighted_export(leaf: QuantLinear | QuantConv2d) -> nn.Module:
    from brevitas import nn as qnn
    from brevitas import quant
    from brevitas.core.utils import SingleArgStatelessBuffer

    integer, per_tensor = is_integer_format(leaf.weight_format), leaf.granularity == "per_tensor"
    kinds = {
        "int": quant.Int8WeightPerTensorFloat if per_tensor else quant.Int8WeightPerChannelFloat,
        "ternary": quant.SignedTernaryWeightPerTensorConst,
        "binary": quant.SignedBinaryWeightPerTensorConst,
        "float": None,
    }
    _, options = _geometry(leaf)
    options["weight_quant"] = kinds["int" if integer else leaf.weight_format]
    if integer:
        options["weight_bit_width"] = int(leaf.weight_format.removeprefix("int"))
    if leaf.weight_scale is not None and not (integer and leaf.follow):
        scale = leaf.weight_scale.detach().clone()
        scale = per_output(scale, leaf.weight.ndim, scale.dtype) if scale.ndim else scale
        options |= {"weight_scaling_impl_type": "const", "weight_scaling_init": scale, "weight_scaling_const": scale}
        if integer:
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


def _sign() -> nn.Module:
    from brevitas import nn as qnn
    from brevitas import quant

    return qnn.QuantIdentity(act_quant=quant.SignedBinaryActPerTensorConst)


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
