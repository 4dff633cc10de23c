"""Watch the hard layers of a model while it runs, and measure each by the metrics that fit its type."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from lightning_polystep.functional.attention import attention_scores, best_keys
from lightning_polystep.functional.neurons import LIFOutput
from lightning_polystep.functional.quantisers import code_range, is_integer_format, largest_code
from lightning_polystep.layers.attention import ArgmaxAttention, SlotArgmaxAttention
from lightning_polystep.layers.lif import SpikingNeuron
from lightning_polystep.layers.moe import HardMoE
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.layers.quantisers import QuantActivation
from lightning_polystep.layers.step_function import StepFunction
from lightning_polystep.metrics.attention import AttentionCoverage, TieRate
from lightning_polystep.metrics.counting import CountingMetric
from lightning_polystep.metrics.moe import DeadExperts, ExpertLoad, RouterMargin
from lightning_polystep.metrics.quantised import ClipFraction, CodeUtilisation
from lightning_polystep.metrics.spiking import DeadNeuronFraction, SaturatedNeuronFraction, SpikeRate
from lightning_polystep.metrics.staircase import LevelOccupancy
from lightning_polystep.metrics.synaptic import SYNAPTIC, SynapticOperations
from lightning_polystep.sites import looking_on

# The layers that have figures of their own.
MEASURED = (
    SpikingNeuron,
    QuantActivation,
    StepFunction,
    QuantisedWeight,
    ArgmaxAttention,
    SlotArgmaxAttention,
    HardMoE,
)

AnyMetric = TypeVar("AnyMetric", bound=CountingMetric)


class LayerWatch:
    """Hooks on the known layers of a model, each of which feeds the metrics of its type.

    ===================================  ==========================================================================
    layers                               figures, each followed by ``/`` and the layer's name
    ===================================  ==========================================================================
    ``LIF``, ``RLIF``, ``Synaptic``      ``spike_rate``, ``dead_neurons``, ``saturated_neurons``
    ``Staircase``, ``Sign`` and others   ``levels_used``, ``level_entropy``
    ``QuantActivation``                  ``code_utilisation``, ``clip_fraction``
    ``QuantLinear``, ``QuantConv2d``     ``weight_code_utilisation``, ``weight_clip_fraction`` (int)
    ``ArgmaxAttention``                  ``attention_coverage``, ``tie_rate``
    ``SlotArgmaxAttention``              ``slot_utilisation``, ``tie_rate``
    ``HardMoE``                          ``expert_imbalance``, ``expert_entropy``, ``dead_experts``,
                                         ``router_margin``, ``tie_rate``
    Linear and convolution layers        ``synaptic_operations``
    ===================================  ==========================================================================

    The sums over layers, ``synaptic_operations``, ``accumulates``, ``multiply_accumulates`` and ``dense_operations``,
    have no layer's name. All operations are per sample and need :meth:`count_samples`. Candidates that PolyStep scores
    are not measured. What hooks do not see is not counted: products of queries and keys, modules that are bypassed.

    Args:
        model: The model.
        synaptic_operations: Whether to count operations, which costs about as much as a second look at every input.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import LIF, SpikeCount
        >>> from lightning_polystep.metrics import LayerWatch
        >>> model = torch.nn.Sequential(LIF(beta=1.0, num_steps=4), SpikeCount())
        >>> with LayerWatch(model) as watch:
        ...     _ = model(torch.tensor([[0.5, 0.0]]))
        >>> watch.compute()
        {'spike_rate/0': tensor(0.2500), 'dead_neurons/0': tensor(0.5000), 'saturated_neurons/0': tensor(0.)}
    """

    def __init__(self, model: nn.Module, *, synaptic_operations: bool = True) -> None:
        self.model = model
        self._synaptic_operations = synaptic_operations
        self._metrics: dict[str, CountingMetric] = {}
        self._operations: dict[str, SynapticOperations] = {}
        self._weights: dict[str, QuantisedWeight] = {}
        self._neurons: dict[str, int] = {}
        self._samples = 0
        self._hooks = ExitStack()

    def __enter__(self) -> LayerWatch:
        """Add the hooks."""
        watchers: list[tuple[type[nn.Module] | tuple[type[nn.Module], ...], Callable[[str, Any], None]]] = [
            (SpikingNeuron, self._watch_spikes),
            (QuantActivation, self._watch_activations),
            (StepFunction, self._watch_levels),
            (QuantisedWeight, self._watch_weights),
            (ArgmaxAttention, self._watch_attention),
            (SlotArgmaxAttention, self._watch_slots),
            (HardMoE, self._watch_experts),
        ]
        for name, module in self.model.named_modules():
            shown = name or type(module).__name__
            watch = next((watch for kind, watch in watchers if isinstance(module, kind)), None)
            if watch is not None:
                watch(shown, module)
            if self._synaptic_operations and isinstance(module, SYNAPTIC):
                self._watch_operations(shown, module)
        return self

    def __exit__(self, *_: object) -> None:
        """Remove the hooks; what was measured stays."""
        self._hooks.close()

    def count_samples(self, samples: int) -> None:
        """Say that so many samples have passed since the last call, for the figures that are per sample."""
        self._samples += samples
        for operations in self._operations.values():
            operations.add_samples(samples)

    def compute(self) -> dict[str, Tensor]:
        """Return the figures by name; over all processes, where there are several."""
        figures: dict[str, Tensor] = {}
        for key, metric in self._metrics.items():
            value = metric.compute()
            if isinstance(value, dict):
                kind, _, name = key.partition("/")
                shown = _SCALARS[kind]
                figures |= {f"{figure}/{name}": value[part] for part, figure in shown.items()}
            else:
                figures[key] = value
        for name, layer in self._weights.items():
            figures |= _weight_figures(name, layer)
        return figures | self._operation_figures()

    def _operation_figures(self) -> dict[str, Tensor]:
        if self._samples == 0 or not self._operations:
            return {}
        counted = {name: operations.compute() for name, operations in self._operations.items()}
        total = {kind: torch.stack([each[kind] for each in counted.values()]).sum() for kind in _OPERATIONS}
        figures = {
            f"synaptic_operations/{name}": each["accumulates"] + each["multiply_accumulates"]
            for name, each in counted.items()
        }
        return figures | {
            "synaptic_operations": total["accumulates"] + total["multiply_accumulates"],
            "accumulates": total["accumulates"],
            "multiply_accumulates": total["multiply_accumulates"],
            "dense_operations": total["dense"],
        }

    # --- one method per family -------------------------------------------------------------------------------------

    def _watch_spikes(self, name: str, layer: SpikingNeuron) -> None:
        def hook(inputs: Tensor, output: Any, _named: dict[str, Any]) -> None:
            spikes: Tensor = output.spikes if isinstance(output, LIFOutput) else output
            neurons = spikes.shape[2:].numel()
            self._metric(f"spike_rate/{name}", SpikeRate, inputs).update(spikes)
            if self._neurons.setdefault(name, neurons) != neurons:
                # Inputs of different sizes, as of images: a neuron is then no longer one of a fixed number.
                self._metrics.pop(f"dead_neurons/{name}", None)
                self._metrics.pop(f"saturated_neurons/{name}", None)
                self._neurons[name] = 0
            elif neurons:
                self._metric(f"dead_neurons/{name}", lambda: DeadNeuronFraction(neurons), inputs).update(spikes)
                saturated = self._metric(f"saturated_neurons/{name}", lambda: SaturatedNeuronFraction(neurons), inputs)
                saturated.update(spikes)

        self._after(layer, hook)

    def _watch_levels(self, name: str, layer: StepFunction) -> None:
        def hook(inputs: Tensor, output: Tensor, _named: dict[str, Any]) -> None:
            make = lambda: LevelOccupancy(layer.levels(output.dtype).unique())  # noqa: E731 - only the first call makes it
            self._metric(f"level_occupancy/{name}", make, inputs).update(output)

        self._after(layer, hook)

    def _watch_activations(self, name: str, layer: QuantActivation) -> None:
        self._after(layer, lambda inputs, _output, _named: self._count_codes(name, layer, inputs))

    def _count_codes(self, name: str, layer: QuantActivation, inputs: Tensor) -> None:
        low, high = code_range(layer.bits, layer.signed)
        used = self._metric(f"code_utilisation/{name}", lambda: CodeUtilisation(range(low, high + 1)), inputs)
        used.update(layer.codes(inputs))
        self._metric(f"clip_fraction/{name}", lambda: ClipFraction(low, high), inputs).update(inputs, layer.scale)

    def _watch_weights(self, name: str, layer: QuantisedWeight) -> None:
        if layer.weight_format != "float":
            self._weights[name] = layer
        quantiser = layer.input_quant
        if quantiser is not None:
            # The layer reads its quantiser's scale and never calls it, so a hook on the quantiser would see nothing.
            child = f"{name}.input_quant"
            self._after(layer, lambda inputs, _output, _named: self._count_codes(child, quantiser, inputs))

    def _watch_attention(self, name: str, layer: ArgmaxAttention) -> None:
        projected: dict[str, Tensor] = {}

        def keep(place: str) -> Callable[[Tensor, Tensor, dict[str, Any]], None]:
            return lambda _inputs, output, _named: projected.update({place: output})

        def hook(inputs: Tensor, _output: Any, named: dict[str, Any]) -> None:
            query, key = (layer.split_heads(projected.pop(place)) for place in ("query", "key"))
            mask = layer.merge_masks(named.get("key_padding_mask"), named.get("attn_mask"))
            scores = attention_scores(query, key, mask, is_causal=layer.is_causal)
            coverage = self._metric(f"attention_coverage/{name}", AttentionCoverage, inputs)
            available = (scores != -torch.inf).any(-2)
            coverage.update(best_keys(scores), scores.shape[-1], available)
            self._metric(f"tie_rate/{name}", TieRate, inputs).update(scores)

        self._after(layer.q_proj, keep("query"))
        self._after(layer.k_proj, keep("key"))
        self._after(layer, hook)

    def _watch_slots(self, name: str, layer: SlotArgmaxAttention) -> None:
        def hook(inputs: Tensor, _output: Any, _named: dict[str, Any]) -> None:
            scores = inputs.detach() @ layer.keys.detach().T
            slots = self._metric(f"slot_utilisation/{name}", lambda: CodeUtilisation(range(len(layer.keys))), inputs)
            slots.update(scores.argmax(-1))
            self._metric(f"tie_rate/{name}", TieRate, inputs).update(scores)

        self._after(layer, hook)

    def _watch_experts(self, name: str, layer: HardMoE) -> None:
        experts = len(layer.experts)

        def hook(inputs: Tensor, scores: Tensor, _named: dict[str, Any]) -> None:
            route = scores.argmax(-1)
            self._metric(f"expert_load/{name}", lambda: ExpertLoad(experts), inputs).update(route)
            self._metric(f"dead_experts/{name}", lambda: DeadExperts(experts), inputs).update(route)
            if experts > 1:
                self._metric(f"router_margin/{name}", RouterMargin, inputs).update(scores)
                self._metric(f"tie_rate/{name}", TieRate, inputs).update(scores)

        self._after(layer.router, hook)

    def _watch_operations(self, name: str, layer: nn.Module) -> None:
        def hook(inputs: Tensor, _output: Any, _named: dict[str, Any]) -> None:
            operations = self._operations.get(name)
            if operations is None:
                operations = self._operations[name] = SynapticOperations().to(inputs.device)
                operations.add_samples(self._samples)
            operations.update(inputs, layer, samples=0)

        self._after(layer, hook)

    # --- hooks -----------------------------------------------------------------------------------------------------

    def _after(self, layer: nn.Module, hook: Callable[[Tensor, Any, dict[str, Any]], None]) -> None:
        """Call the hook with a layer's first input, its output and its named arguments, but not during probes."""

        @looking_on
        @torch.no_grad()
        def after(_module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
            inputs = args[0] if args else next(iter(named.values()), None)
            if isinstance(inputs, Tensor):
                hook(inputs, output, named)

        self._hooks.callback(layer.register_forward_hook(after, with_kwargs=True).remove)

    def _metric(self, key: str, make: Callable[[], AnyMetric], like: Tensor) -> AnyMetric:
        """Return the metric of that name, made by the first call that wants it: sizes are known then."""
        if key not in self._metrics:
            self._metrics[key] = make().to(like.device)
        return cast("AnyMetric", self._metrics[key])


_OPERATIONS = ("accumulates", "multiply_accumulates", "dense")
# The scalars of metrics that return several figures, and what they are called.
_SCALARS = {
    "level_occupancy": {"used": "levels_used", "entropy": "level_entropy"},
    "expert_load": {"imbalance": "expert_imbalance", "entropy": "expert_entropy"},
}


def _weight_figures(name: str, layer: QuantisedWeight) -> dict[str, Tensor]:
    """Measure a layer's weights as they are now; they do not add up over batches."""
    scale = layer.weight_scale
    if layer.weight_format == "float" or scale is None:
        return {}
    high = largest_code(layer.weight_format)
    possible = (-1, 1) if layer.weight_format == "binary" else range(-high, high + 1)
    used = CodeUtilisation(possible).to(layer.weight.device)
    used.update(layer.weight_codes().detach())
    figures: dict[str, Tensor] = {f"weight_code_utilisation/{name}": used.compute()}
    if is_integer_format(layer.weight_format):
        clipped = ClipFraction(-high, high).to(layer.weight.device)
        clipped.update(layer.weight, scale)
        figures[f"weight_clip_fraction/{name}"] = clipped.compute()
    return figures
