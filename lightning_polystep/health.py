"""Warn in the first steps of silent layers, and later of clipped codes and idle experts, once each, with the cure."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_polystep.functional.quantisers import code_range, is_integer_format, largest_code, per_output
from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.layers.moe import HardMoE
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.layers.quantisers import QuantActivation
from lightning_polystep.silence import listening, silent
from lightning_polystep.sites import looking_on

# From this pass on, and at each twice as late, layers are looked at again: training has moved something by then.
_FIRST_LATER_PASS = 8
# Above this share of clipped numbers a layer has lost a part of its range.
_CLIPPED = 0.05
# Below that many bits the largest code is where many numbers are meant to be.
_FEWEST_BITS = 3
# An expert that is due so many samples of a batch and has none is no accident.
_DUE_SAMPLES = 8

_SILENT = (
    "Nothing trains what lies before a silent layer, and at most a bias what lies behind it, because no candidate "
    "changes its output. At pass {} these layers are silent: {}. Give them first weights that reach their steps, with "
    "lightning_polystep.initialise(module, batch) or "
    "Trainer(callbacks=[lightning_polystep.callbacks.InitialiseByData()]); or lower their thresholds."
)
_WEIGHTS = (
    "At pass {} weights have outgrown their frozen scales, are clipped, and candidates hardly change them: {}. Let the "
    "scales follow, with QuantLinear(..., follow=True) or the callback Calibrate(follow=True) (in Brevitas "
    'weight_scaling_impl_type="stats"), call calibrate_weight() between epochs, or lower lr.'
)
_ACTIVATIONS = (
    "At pass {} activations are beyond the largest code of their frozen scales: {}. Let the scales follow, with "
    "QuantActivation(..., follow=True) or the callback Calibrate(follow=True), or calibrate again between epochs."
)
_EXPERTS = (
    "At pass {} experts have no sample of the batch, and what no sample reaches never learns: {}. Spread the router's "
    "first scores by lightning_polystep.initialise(module, batch) or the callback InitialiseByData, give the router a "
    "smaller probe_radius or lr, or use fewer experts."
)


class Health:
    """Looks at a module's layers in its first pass and in ever rarer ones (8, 16, 32 and so on), and warns.

    Each layer is warned of once for each thing that is wrong with it. A pass that is not looked at costs nothing.

    Args:
        module: Root of the tree.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(5.0, 6.0))
        >>> health = Health(network)
        >>> with warnings.catch_warnings(record=True, action="always") as caught:
        ...     with health.looking():
        ...         _ = network(torch.randn(16, 4))
        >>> "'1' (Hardtanh) gives 5 whatever its inputs are" in str(caught[0].message)
        True
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._passes = 0
        self._told: set[tuple[str, str]] = set()

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Wrap a pass that counts, as the outermost of all that wraps it."""
        self._passes += 1
        later = self._passes >= _FIRST_LATER_PASS and self._passes & (self._passes - 1) == 0
        if not later and self._passes > 1:
            yield
            return
        with listening(self._module) as heard, _counting(self._module) as counts:
            yield
        with torch.no_grad():
            self._tell(_SILENT, {line: line for line in silent(heard)})
            self._tell(_EXPERTS, counts.idle())
            if later:
                self._tell(_WEIGHTS, clipped_weights(self._module))
                self._tell(_ACTIVATIONS, counts.clipped())

    def _tell(self, message: str, found: dict[str, str]) -> None:
        new = {name: text for name, text in found.items() if (message, _layer(name)) not in self._told}
        self._told |= {(message, _layer(name)) for name in new}
        if new:
            warnings.warn(message.format(self._passes, ", ".join(new.values())), stacklevel=5)


class _Counts:
    """Clipped activations of quantisers, and samples of experts, in one pass."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[Tensor, int]] = {}
        self.loads: dict[str, Tensor] = {}

    def clipped(self) -> dict[str, str]:
        shares = {name: float(count) / total for name, (count, total) in self.values.items()}
        return {name: f"{share:.0%} of '{name}'" for name, share in shares.items() if share > _CLIPPED}

    def idle(self) -> dict[str, str]:
        idle: dict[str, str] = {}
        for name, load in self.loads.items():
            if int(load.sum()) >= _DUE_SAMPLES * len(load) and not bool(load.all()):
                idle[name] = f"'{name}' has given its experts {load.tolist()}"
        return idle


@contextmanager
def _counting(module: nn.Module) -> Iterator[_Counts]:
    counts = _Counts()
    with ExitStack() as hooks:
        for name, part in module.named_modules():
            quantiser = part.input_quant if isinstance(part, QuantisedWeight) else part
            if isinstance(quantiser, QuantActivation) and quantiser.bits >= _FEWEST_BITS:
                hooks.callback(part.register_forward_pre_hook(_clipping(name, quantiser, counts)).remove)
            elif isinstance(part, HardMoE):
                hooks.callback(part.router.register_forward_hook(_routing(name, len(part.experts), counts)).remove)
        yield counts


def _clipping(name: str, quantiser: QuantActivation, counts: _Counts) -> Callable[..., None]:
    high = code_range(quantiser.bits, quantiser.signed)[1]

    @looking_on
    def hook(_layer: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not (inputs and isinstance(inputs[0], Tensor) and quantiser.calibrated):
            return
        values = inputs[0].detach()
        values = values.abs() if quantiser.signed else values
        known, total = counts.values.get(name, (0, 0))
        beyond = (values > (high + 0.5) * quantiser.scale).sum()
        counts.values[name] = (known + beyond, total + values.numel())

    return hook


def _routing(name: str, experts: int, counts: _Counts) -> Callable[..., None]:
    @looking_on
    def hook(_router: nn.Module, _inputs: Any, scores: Tensor) -> None:
        load = torch.bincount(scores.detach().argmax(-1).flatten(), minlength=experts)
        counts.loads[name] = counts.loads.get(name, torch.zeros_like(load)) + load

    return hook


def clipped_weights(module: nn.Module) -> dict[str, str]:
    """Say of which layers a good part of the weights is beyond the largest code, of this package and of Brevitas.

    Args:
        module: Root of the tree.

    Example:
        >>> from lightning_polystep.layers import QuantLinear
        >>> layer = QuantLinear(4, 3)
        >>> layer.weight_scale *= 0.5
        >>> list(clipped_weights(layer))
        ['QuantLinear']
    """
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        scale, high = _frozen_scale(part)
        if scale is not None:
            weight = cast("Tensor", part.weight)
            beyond = weight.abs() > (high + 0.5) * per_output(scale, weight.ndim, weight.dtype)
            share = float(beyond.float().mean())
            if share > _CLIPPED:
                shown = name or type(part).__name__
                found[shown] = f"{share:.0%} of '{shown}'"
    return found


def _frozen_scale(part: nn.Module) -> tuple[Tensor | None, int]:
    """Return the scale of a layer's integer weights that does not follow them, and their largest code."""
    if isinstance(part, QuantisedWeight):
        high = largest_code(part.weight_format) if is_integer_format(part.weight_format) else 0
        fits = high >= 2 ** (_FEWEST_BITS - 1) - 1 and not part.follow
        return (part.weight_scale, high) if fits else (None, 0)
    proxy: Any = getattr(part, "weight_quant", None)
    if proxy is None or not comes_from(part, "brevitas") or not proxy.is_quant_enabled:
        return None, 0
    quantiser = proxy.tensor_quant
    learned = type(quantiser).__name__ == "RescalingIntQuant" and type(quantiser.scaling_impl).__name__ in (
        "ParameterScaling",
        "ParameterFromStatsFromParameterScaling",
        "ConstScaling",
    )
    bits = int(proxy.bit_width()) if learned else 0
    return (proxy.scale().flatten().squeeze(), 2 ** (bits - 1) - 1) if bits >= _FEWEST_BITS else (None, 0)


def _layer(name: str) -> str:
    """Return the part of a finding that does not change from pass to pass."""
    return name.partition(") ")[0]
