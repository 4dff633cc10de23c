"""Probe Brevitas layers as their users wrote them: scales are frozen while candidates are scored."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from lightning_polystep.interop.adapters import Adapter, modules_of
from lightning_polystep.isolation import replaced
from lightning_polystep.tape import hold, unrecorded

# What Brevitas names the submodules that compute a scale and a zero point, in every quantiser of weights and
# activations; other names ("int_scaling_impl") hold constants.
_STATISTICS = ("scaling_impl", "zero_point_impl")

_HELD = "a scale of Brevitas, calibrated by Brevitas from statistics of batches: frozen while candidates are scored"
# A probe radius fits weights. A scale is a hundredth of that, and each of its candidates would move the codes of a
# whole layer at once, most of them to one end.
_LEARNED = (
    "a learned scale of Brevitas: stays as it is, because a candidate of it would change all codes of its layer at "
    "once. {}"
)
_CURES = {
    "weight": 'With scaling_impl_type="stats" the scale follows the weights',
    "activation": "Brevitas has set it from the statistics of its first batches",
}
_LEARNED_KINDS = ("ParameterScaling", "ParameterFromStatsFromParameterScaling", "ParameterFromRuntimeStatsScaling")


class UncalibratedScaleError(RuntimeError):
    """A Brevitas quantiser has no usable scale; scores on it would be meaningless."""


class BrevitasAdapter(Adapter):
    """Scores all candidates of a micro-batch with the scales that the commit pass computed.

    In training mode Brevitas takes an activation's scale from the batch for the first 300 calls, and counts them; a
    weight's scale is taken from the largest weight at every call. Without this, probes would advance the statistics,
    and one candidate's weight could change the codes of every other unit. So each quantiser's scale and zero point are
    recorded in the commit pass, in the order of its calls, and returned again, in that order, while candidates are
    scored. They follow the weights and the statistics at the next commit pass. Parameters that hold scales are not
    probed.

    Args:
        module: Root of the tree that holds the quantised layers.

    Raises:
        UncalibratedScaleError: From the commit pass, for a scale in evaluation mode that was never calibrated, and for
            one that is not a positive finite number.
        ValueError: If Brevitas compiles its quantisers (``BREVITAS_JIT=1``), which can then not be frozen.

    Example:
        >>> import brevitas.nn
        >>> list(BrevitasAdapter(brevitas.nn.QuantReLU()).held())
        ['act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value']

    Source:
        Brevitas 0.13.4: ``core/scaling`` and ``core/zero_point.py``.
    """

    def __init__(self, module: nn.Module) -> None:
        from brevitas import config

        if config.JIT_ENABLED:
            raise ValueError(
                "BREVITAS_JIT=1 compiles the quantisers, whose scales then cannot be frozen while candidates are "
                "scored: unset it."
            )
        self._module = module
        self._recorded: dict[nn.Module, list[Any]] = {}
        self._replayed: dict[nn.Module, int] = {}

    def start(self) -> None:
        """Forget the scales of the pass before."""
        self._recorded = {}

    def observing(self) -> Any:
        """Record every scale and zero point that the commit pass computes."""
        return self._with_forwards(self._recording)

    def probing(self) -> Any:
        """Return the recorded scales and zero points."""
        return self._with_forwards(self._frozen)

    def rewind(self) -> None:
        """Start again at the first call."""
        self._replayed = {}

    def held(self) -> dict[str, str]:
        """Return the parameters that hold scales or zero points; not weights of which these are statistics."""
        statistics = self._statistics()
        names: dict[nn.Parameter, list[str]] = {}
        for name, parameter in self._module.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        parts = set(statistics.values())
        within = {
            f"{name}.": part for name, part in self._module.named_modules(remove_duplicate=False) if part in parts
        }
        return {
            name: _why_held(name, next(part for prefix, part in within.items() if name.startswith(prefix)))
            for known in names.values()
            if all(n.startswith(tuple(within)) for n in known)
            for name in known
        }

    def _statistics(self) -> dict[str, nn.Module]:
        parts = modules_of(self._module, "brevitas")
        return {name: part for name, part in parts.items() if name.rpartition(".")[2] in _STATISTICS}

    @contextmanager
    def _with_forwards(self, make: Callable[[str, nn.Module], Callable[..., Any]]) -> Iterator[None]:
        """Give every statistics module another forward; a commit pass that probes (manual steps) nests the two."""
        parts = self._statistics()
        with replaced([(part, "forward", make(name, part)) for name, part in parts.items()]):
            yield

    def _recording(self, name: str, part: nn.Module) -> Callable[..., Any]:
        is_scale = name.endswith("scaling_impl")

        def forward(*args: Any, **kwargs: Any) -> Any:
            if is_scale:
                with unrecorded():
                    check_calibrated(name, part)
            output = type(part).forward(part, *args, **kwargs)
            if is_scale:
                with unrecorded():
                    check_scale(name, output)
            if isinstance(output, Tensor):
                hold(output)
            kept = output.detach().clone() if isinstance(output, Tensor) else output
            self._recorded.setdefault(part, []).append(kept)
            return output

        return forward

    def _frozen(self, name: str, part: nn.Module) -> Callable[..., Any]:
        del name

        def forward(*args: Any, **kwargs: Any) -> Any:
            kept = self._recorded.get(part)
            if not kept:
                # The commit pass has not come here (yet); the snapshot puts back what this call counts.
                return type(part).forward(part, *args, **kwargs)
            call = self._replayed.get(part, 0)
            self._replayed[part] = call + 1
            return kept[min(call, len(kept) - 1)]

        return forward


def _why_held(name: str, part: nn.Module) -> str:
    """Say why a parameter that holds a scale is not probed."""
    collecting = getattr(part, "counter", 0) < getattr(part, "collect_stats_steps", 0)
    if type(part).__name__ not in _LEARNED_KINDS or collecting:
        return _HELD
    return _LEARNED.format(_CURES["weight" if "weight_quant." in name else "activation"])


def check_calibrated(name: str, part: nn.Module) -> None:
    """Refuse a statistics module in evaluation mode that has seen no batch.

    Args:
        name: What the error calls it.
        part: The ``scaling_impl`` of a quantiser.

    Raises:
        UncalibratedScaleError: If so.
    """
    runtime = getattr(part, "runtime_stats", None)
    untouched = getattr(part, "counter", None) == 0 or getattr(runtime, "first_batch", False)
    if untouched and not part.training:
        raise UncalibratedScaleError(
            f"{name} was never calibrated, and in evaluation mode it never will be: leave the network in training mode "
            "for the first batches, or run some inside brevitas.graph.calibrate.calibration_mode(network)."
        )


def check_scale(name: str, scale: Any) -> None:
    """Refuse a scale that is not a positive finite number.

    Args:
        name: What the error calls the quantiser.
        scale: What it computed.

    Raises:
        UncalibratedScaleError: If so.
    """
    if isinstance(scale, Tensor) and not bool((torch.isfinite(scale) & (scale > 0)).all()):
        raise UncalibratedScaleError(
            f"{name} gave a scale that is not a positive finite number: calibrate on batches without NaN or infinity, "
            "and give the quantiser a scaling_min_val if its tensor can be all zeros."
        )
