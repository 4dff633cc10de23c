"""Give a user's own module of another library the weights of a trained network, as a plain ``state_dict``."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.exports.chain import Link, chain_of
from lightning_polystep.functional.quantisers import weight_scale
from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.interop.snntorch_conversion import ConversionError
from lightning_polystep.layers import LIF, QuantActivation, Sign
from lightning_polystep.layers.quantised import QuantisedWeight

# Constants that a library keeps in float32 and computes with.
_CLOSE = 1e-6
_SPIKING = ("snntorch", "norse", "spikingjelly")


def state_dict_for(network: nn.Module, target: nn.Module) -> dict[str, Tensor]:
    r"""Return a ``state_dict`` for a module of another library that then computes what a network computes.

    Layers of the two are matched in the order of their definition, whatever they are called and however the module's
    ``forward`` runs them: Linear and convolutions with each other, LIF neurons with ``snntorch.Leaky``, SpikingJelly's
    ``LIFNode`` and Norse's ``LIFBoxCell``, and quantised layers with those of Brevitas. What the other library keeps
    outside its ``state_dict`` (SpikingJelly's and Norse's leaks and thresholds, resets, bit widths) has to agree, and
    is compared. Norse multiplies what a neuron receives by :math:`1 - \beta`, so weights in front are divided by that.

    Args:
        network: An ``nn.Sequential`` of this package's layers.
        target: The user's module; it is not changed.

    Returns:
        For ``target.load_state_dict``, with ``strict=True``.

    Raises:
        ConversionError: If the layers are others, or a constant does not agree: in one sentence.

    Example:
        >>> from lightning_polystep.layers import SpikeCount
        >>> network = nn.Sequential(nn.Linear(4, 3), LIF(0.9, num_steps=5), SpikeCount())
        >>> class Theirs(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.fc = nn.Linear(4, 3)
        >>> target = Theirs()
        >>> target.load_state_dict(state_dict_for(network[:1], target))
        <All keys matched successfully>

    Source:
        snnTorch 1.0.0, SpikingJelly 2.0.0, Norse 1.1.0 and Brevitas 0.13.4.
    """
    filled = deepcopy(target)
    theirs = [Link(name, part) for name, part in filled.named_modules() if _kind(part)]
    ours = _ours(network, quantisers=any(_kind(link.layer) == "quantiser" for link in theirs))
    shown = [" ".join(str(_kind(link.layer)) for link in links) for links in (ours, theirs)]
    if shown[0] != shown[1]:
        raise ConversionError(
            f"The network has the layers [{shown[0]}] and the module [{shown[1]}]: they have to match."
        )
    with torch.no_grad():
        for place, (mine, its) in enumerate(zip(ours, theirs, strict=True)):
            if _kind(mine.layer) == "weights":
                follower = ours[place + 1].layer if place + 1 < len(ours) else None
                norse = place + 1 < len(theirs) and comes_from(theirs[place + 1].layer, "norse")
                _fill_weights(mine, its, _gain(mine, follower) if norse else None)
            elif _kind(mine.layer) == "neurons":
                _fill_neurons(mine, its)
            elif _kind(mine.layer) == "quantiser":
                _fill_quantiser(mine, its)
            else:
                its.layer.load_state_dict(mine.layer.state_dict())
    return filled.state_dict()


def _ours(network: nn.Module, *, quantisers: bool) -> list[Link]:
    """Return the layers that are matched, a layer's own quantiser in front of it where the module has quantisers."""
    found: list[Link] = []
    for link in chain_of(network):
        own = getattr(link.layer, "input_quant", None)
        if own is not None and quantisers:
            found.append(Link(f"{link.name}.input_quant", own))
        if _kind(link.layer):
            found.append(link)
        elif any(True for _ in link.layer.parameters()):
            raise ConversionError(
                f"{link.name}: {type(link.layer).__name__} is not matched with layers of other libraries."
            )
    return found


def _kind(part: nn.Module) -> str:
    """Return what a layer is matched as; empty for one that has nothing to match."""
    attributes = {"snntorch": "reset_mechanism", "spikingjelly": "v_threshold", "norse": "p"}
    if isinstance(part, nn.Linear | nn.Conv2d):
        return "weights"
    foreign = any(comes_from(part, library) and hasattr(part, name) for library, name in attributes.items())
    if isinstance(part, LIF) or foreign:
        return "neurons"
    if isinstance(part, QuantActivation | Sign):
        return "quantiser"
    if comes_from(part, "brevitas") and type(part).__name__ in ("QuantReLU", "QuantIdentity", "QuantHardTanh"):
        return "quantiser"
    # Others, as normalisations, have to be of one class; what has no state needs no match.
    own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    return type(part).__name__ if own and type(part).__module__.startswith(("torch.nn", "lightning_polystep")) else ""


def _gain(link: Link, neurons: nn.Module | None) -> Tensor:
    """Return what Norse multiplies the currents of a layer by, ``()`` or one per output."""
    if type(neurons) is not LIF:
        raise ConversionError(f"{link.name}: behind it the module has Norse's neurons, and the network none.")
    gain = 1 - neurons.beta.detach().clamp(0, 1)
    if bool((gain == 0).any()):
        raise ConversionError("Norse's LIFBoxCell has no leak of 1: use its IAFCell, or another leak.")
    return gain.flatten() if gain.numel() > 1 else gain.reshape(())


def _fill_weights(mine: Link, its: Link, gain: Tensor | None) -> None:
    layer: Any = mine.layer
    target: Any = its.layer
    if layer.weight.shape != target.weight.shape or (layer.bias is None) != (target.bias is None):
        raise ConversionError(
            f"{mine.name} is {layer} and {its.name} is {target}: shapes, and whether there is a bias, have to match."
        )
    quantised = comes_from(target, "brevitas") and target.weight_quant.is_quant_enabled
    if isinstance(layer, QuantisedWeight) and layer.weight_format != "float" and not quantised:
        raise ConversionError(f"{mine.name} has quantised weights, and {its.name} ({type(target).__name__}) has not.")
    if isinstance(layer, nn.Conv2d):
        for name in ("stride", "padding", "dilation", "groups", "padding_mode"):
            if getattr(layer, name) != getattr(target, name):
                raise ConversionError(
                    f"{mine.name} has {name}={getattr(layer, name)}, and {its.name} {getattr(target, name)}."
                )
    divisor = 1.0 if gain is None else gain
    outputs = (
        divisor
        if not isinstance(divisor, Tensor) or not divisor.ndim
        else divisor.view(-1, *[1] * (layer.weight.ndim - 1))
    )
    target.weight.copy_(layer.weight / outputs)
    if layer.bias is not None:
        target.bias.copy_(layer.bias / divisor)
    if isinstance(layer, QuantisedWeight) and quantised:
        _compare_codes(mine, its)


def _compare_codes(mine: Link, its: Link) -> None:
    layer: Any = mine.layer
    target: Any = its.layer
    scale = weight_scale(layer.weight, layer.weight_format, layer.granularity) if layer.follow else layer.weight_scale
    theirs = target.weight_quant.scale().flatten()
    codes = (target.quant_weight().value / target.weight_quant.scale()).round()
    if not torch.equal(scale.flatten().expand_as(theirs), theirs) or not torch.equal(codes, layer.weight_codes()):
        raise ConversionError(
            f"{its.name} takes another scale from the same weights than {mine.name} has: take Brevitas layers from "
            "lightning_polystep.interop.to_brevitas, or call calibrate_weight() before the last epochs of training."
        )


def _fill_neurons(mine: Link, its: Link) -> None:
    layer: Any = mine.layer
    target: Any = its.layer
    kind = f"{mine.name} ({layer}) and {its.name} ({type(target).__name__})"
    library = next(name for name in _SPIKING if comes_from(target, name))
    wanted = {"snntorch": "gt", "norse": "gt", "spikingjelly": "ge"}[library]
    if layer.spike_on != wanted:
        raise ConversionError(f'{kind}: neurons of {library} have spike_on="{wanted}", and the network another.')
    if library == "snntorch":
        _fill_snntorch(layer, target, kind)
        return
    if layer.reset_delay:
        raise ConversionError(f"{kind}: neurons of {library} reset at once, and the network's a step later.")
    beta, threshold, reset = (_of_spikingjelly if library == "spikingjelly" else _of_norse)(target, kind)
    if reset == layer.reset_mechanism == "subtract":
        raise ConversionError(
            f"{kind}: a membrane that is still at the threshold after a subtraction is lowered once more at the next "
            f"step here, as in snnTorch, and not in {library}."
        )
    if reset != layer.reset_mechanism:
        raise ConversionError(f'{kind}: the module resets by "{reset}", the network by "{layer.reset_mechanism}".')
    for name, theirs in (("leak", beta), ("threshold", threshold)):
        ours = layer.beta.clamp(0, 1) if name == "leak" else layer.threshold
        if not torch.allclose(ours.double(), torch.as_tensor(theirs).double(), rtol=_CLOSE, atol=_CLOSE):
            raise ConversionError(
                f"{kind}: the {name} is not in the module's state_dict, and it has {theirs:g} where the network has "
                f"{ours.flatten()[0]:g}: build the module with that of the network."
                if torch.as_tensor(theirs).numel() == 1
                else f"{kind}: the {name}s differ, which are not in the module's state_dict."
            )


def _fill_snntorch(layer: LIF, target: Any, kind: str) -> None:
    if type(target).__name__ != "Leaky":
        raise ConversionError(f"{kind}: of snnTorch's neurons, Leaky alone is that of the network.")
    reset = ("subtract", "zero", "none")[int(target.reset_mechanism_val)]
    if reset != layer.reset_mechanism or bool(target.reset_delay) != layer.reset_delay:
        raise ConversionError(
            f'{kind}: the module has reset_mechanism="{reset}" and reset_delay={bool(target.reset_delay)}, the network '
            f'"{layer.reset_mechanism}" and {layer.reset_delay}.'
        )
    for name in ("beta", "threshold"):
        ours, theirs = getattr(layer, name), getattr(target, name)
        if ours.shape != theirs.shape and not bool((ours == ours.flatten()[0]).all()):
            raise ConversionError(
                f"{kind}: {name} has one value per neuron in the network, and another shape in the module."
            )
        theirs.copy_(ours if ours.shape == theirs.shape else ours.flatten()[0].expand_as(theirs))


def _of_spikingjelly(target: Any, kind: str) -> tuple[float, float, str]:
    if type(target).__name__ not in ("LIFNode", "IFNode") or getattr(target, "decay_input", False):
        raise ConversionError(
            f"{kind}: of SpikingJelly's neurons, IFNode and LIFNode(decay_input=False) are the network's."
        )
    if target.v_reset not in (None, 0.0):
        raise ConversionError(f"{kind}: the module resets to {target.v_reset:g}, and the network to 0.")
    beta = 1 - 1 / target.tau if type(target).__name__ == "LIFNode" else 1.0
    return beta, float(target.v_threshold), "subtract" if target.v_reset is None else "zero"


def _of_norse(target: Any, kind: str) -> tuple[Tensor, Tensor, str]:
    if type(target).__name__ != "LIFBoxCell":
        raise ConversionError(f"{kind}: of Norse's neurons, LIFBoxCell alone is the network's.")
    p = target.p
    if float(torch.as_tensor(p.v_leak).abs().max()) or float(torch.as_tensor(p.v_reset).abs().max()):
        raise ConversionError(f"{kind}: the module rests at or resets to another value than 0.")
    reset = {"reset_value": "zero", "reset_subtract": "subtract"}.get(p.reset_method.__name__, p.reset_method.__name__)
    return 1 - target.dt * torch.as_tensor(p.tau_mem_inv), torch.as_tensor(p.v_th), reset


def _fill_quantiser(mine: Link, its: Link) -> None:
    layer: Any = mine.layer
    target: Any = its.layer
    proxy = target.act_quant
    kind = f"{mine.name} ({layer}) and {its.name} ({type(its.layer).__name__})"
    if isinstance(layer, Sign):
        raise ConversionError(f"{kind}: take the module for signs from lightning_polystep.interop.to_brevitas.")
    signed, bits = bool(proxy.is_signed), int(proxy.bit_width())
    narrow = bool(proxy.is_narrow_range) or not signed
    if (signed, bits) != (layer.signed, layer.bits) or (signed and narrow != layer.narrow_range):
        raise ConversionError(
            f"{kind}: bits, sign and range have to match; the module's are {bits}, {signed} and {narrow}."
        )
    scaling = proxy.fused_activation_quant_proxy.tensor_quant.scaling_impl
    value, wanted = getattr(scaling, "value", None), layer.format_for(torch.empty(0)).scale
    if not isinstance(value, Tensor):
        raise ConversionError(f"{kind}: the module has no scale in its state_dict ({type(scaling).__name__}).")
    if hasattr(scaling, "counter"):
        scaling.counter = scaling.collect_stats_steps + 1  # as loading a value does
    _solve_for_scale(value, wanted, proxy.scale, kind)


def _solve_for_scale(value: Tensor, wanted: Tensor, scale: Any, kind: str) -> None:
    """Set what a scale is computed from, so that it comes out bit for bit."""
    value.fill_(1.0)
    value.copy_(wanted / scale().reshape(()))
    for _ in range(8):
        got = scale().reshape(())
        if bool(got == wanted):
            return
        value.copy_(torch.nextafter(value, value.new_full((), float("inf") if bool(got < wanted) else float("-inf"))))
    raise ConversionError(f"{kind}: no state of the module gives the scale {float(wanted)!r}, only {float(scale())!r}.")
