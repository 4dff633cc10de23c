"""First weights from data: pre-activations that reach the steps of hard layers, layer by layer, by forward passes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn

from lightning_polystep.blocks import is_binary
from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.isolation import metrics_muted
from lightning_polystep.layers.lif import SpikingNeuron
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.layers.quantisers import NotCalibratedError, QuantActivation
from lightning_polystep.randomness import noise_frame
from lightning_polystep.silence import Heard, first_tensor, is_neuron, listening, silent
from lightning_polystep.snapshot import Snapshot

# Neurons that fire less are driven harder, by factors of two, and those that fire more less hard, unless they then fire
# too little. 64-128-10, leak 0.95, 15 steps, cosine, two seeds: from 5 to 15 % 94.2 and 92.8 % of the digits, from 2 to
# 6 % 96.9 and 96.7 %, as torch's own weights, which fire so, 96.1 and 95.6 %; at currents of 1 (19 to 26 %) 89 %.
_LEAST_RATE, _MOST_RATE = 0.02, 0.06
_MOST_DOUBLINGS, _MOST_HALVINGS = 14, 4
# Values from which an activation's scale is taken.
_MOST_VALUES = 2**20


class FirstWeights(dict[str, float]):
    """What :func:`initialise` has done: the factor of each layer's weights, by name.

    Args:
        module: The network.

    Example:
        >>> from lightning_polystep import PolyStep
        >>> from lightning_polystep.layers import LIF, SpikeCount
        >>> network = nn.Sequential(nn.Linear(8, 32), LIF(0.5, threshold=50.0, num_steps=5), SpikeCount())
        >>> optimizer = PolyStep(initialise(network, torch.rand(64, 8)).groups(lr=0.1))
        >>> optimizer.param_groups[0]["lr"] > 1
        True
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._module = module
        self.spreads: dict[str, float] = {}

    def radii(self) -> dict[str, float]:
        """Return by how much each layer's pre-activations are wider than 1, as a power of two from 1 on, by name."""
        return {name: 2.0 ** max(0, round(math.log2(spread))) for name, spread in self.spreads.items() if spread > 0}

    def groups(self, *, lr: float = 0.1, probe_radius: float = 0.3, subspace: str = "inputs") -> list[dict[str, Any]]:
        """Return groups of all trainable parameters for PolyStep, with radii in units of each layer's pre-activations.

        Args:
            lr: Step radius where pre-activations are about 1.
            probe_radius: Probe radius there.
            subspace: As in PolyStep. Where binary weights are flipped one by one, ``lr`` is a share of their scale, and
                stays as it is.

        Returns:
            A group for each width, then one for what is no layer.
        """
        widths = self.radii()
        groups: dict[tuple[float, float], list[nn.Parameter]] = {}
        taken: set[nn.Parameter] = set()
        for name, width in widths.items():
            layer = self._module.get_submodule(name)
            own = [p for p in layer.parameters(recurse=False) if p.requires_grad]
            flipped = subspace == "flips" and is_binary(layer)
            groups.setdefault((width, 1.0 if flipped else width), []).extend(p for p in own if p not in taken)
            taken.update(own)
        rest = [p for p in self._module.parameters() if p.requires_grad and p not in taken]
        found = [
            {"params": members, "lr": lr * move, "probe_radius": probe_radius * width, "subspace": subspace}
            for (width, move), members in groups.items()
        ]
        others = {"params": rest, "lr": lr, "probe_radius": probe_radius, "subspace": subspace}
        return [*found, others] if rest else found


@torch.no_grad()
def initialise(module: nn.Module, batch: Any, *, target: float = 1.0, centre: bool = True) -> FirstWeights:
    r"""Scale and centre the first weights of a network on a batch, so that its layers have something to say.

    Each Linear and convolution layer, in the order in which the network calls them, gets

    .. math::
        W' = g W, \qquad b' = g (b - m), \qquad g = \text{target} / \sqrt{\overline{v}}

    where m and v are the mean and the variance of each unit's pre-activation over the batch (and the time steps and
    positions), as the layers before it, initialised already, make it. Layers without a bias are scaled to that root
    mean square and not centred. If the neurons or steps behind the layer are still silent, or fire at less than a
    fiftieth of the steps, g is doubled until they do; where neurons fire at more than a sixteenth of them, g is halved,
    as long as they still fire at a fiftieth. Networks of other libraries are initialised alike; a layer is measured
    over all its calls.

    It is for first weights, before the first step. Frozen layers, weights that are shared with other modules or all 0,
    and those inside of neurons stay. Scales of quantised weights grow with them. The same batch gives the same bits;
    buffers, hidden states and random generators are left as they were.

    Args:
        module: The network, or a module that holds it.
        batch: What the module is called with; of a tuple or list the first element; or a function without arguments
            that runs the module, such as ``lambda: criterion(model(x), y)``.
        target: Root mean square of pre-activations: steps of hard layers lie about 1 apart.
        centre: Whether biases make the mean of each unit 0.

    Returns:
        The factor g of each layer, by name. Where g was doubled, PolyStep's radii, which are meant for pre-activations
        of about 1, are small beside what the layer needs: :meth:`FirstWeights.groups` has radii that fit.

    Raises:
        ValueError: If nothing can be initialised, or the module cannot be called with the batch.

    Example:
        >>> from lightning_polystep.layers import LIF, SpikeCount
        >>> network = nn.Sequential(nn.Linear(8, 32), LIF(0.5, threshold=50.0, num_steps=5), SpikeCount())
        >>> x = torch.rand(64, 8)
        >>> float(network(x).sum().detach())
        0.0
        >>> gains = initialise(network, x)
        >>> float(network(x).sum().detach()) > 0
        True

    Source:
        Mishkin and Matas 2016, *All you need is a good init*, arXiv 1511.06422 (scaled layer by layer).
    """
    sites = _sites(module)
    if not sites:
        raise ValueError(
            "initialise: the module has no Linear or convolution layer with trainable weights of its own, so there is "
            "nothing to scale."
        )
    work = _Work(module, _runner(module, batch), sites)
    measured = work.measure()
    if not measured.order:
        raise ValueError(
            "initialise: the batch reached no Linear or convolution layer of the module: give a function that runs it, "
            "as in initialise(model, lambda: criterion(model(x), y))."
        )
    gains = FirstWeights(module)
    while left := [name for name in measured.order if name not in gains]:
        gains[left[0]], measured = _initialise_site(work, left[0], measured, target, centre)
    gains.spreads = {name: measured.moments[name].spread(centre)[1] for name in gains}
    for quantiser, scale in measured.scales.items():
        if quantiser.calibrated:
            quantiser.scale = scale
    return gains


@dataclass
class _Moments:
    """Sums over the calls of a layer, per unit."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, outputs: Tensor) -> None:
        rows = outputs.detach().double().reshape(-1, outputs.shape[-1])
        self.count += len(rows)
        self.total = self.total + rows.sum(0)
        self.squares = self.squares + rows.square().sum(0)

    def spread(self, centre: bool) -> tuple[Tensor, float]:
        """Return the mean of each unit, and the root mean square of all about it, or about 0."""
        mean, square = torch.as_tensor(self.total) / self.count, torch.as_tensor(self.squares) / self.count
        about = square - mean.square() if centre else square
        return mean, math.sqrt(max(0.0, float(about.mean())))


@dataclass
class _Measured:
    """One pass: layers in the order of their first calls, what they gave, and who was heard between them."""

    moments: dict[str, _Moments] = field(default_factory=dict)
    heard: dict[str, Heard] = field(default_factory=dict)
    # How many modules had been heard when a layer was first called.
    places: dict[str, int] = field(default_factory=dict)
    scales: dict[QuantActivation, Tensor] = field(default_factory=dict)

    @property
    def order(self) -> list[str]:
        return list(self.places)

    def behind(self, name: str) -> dict[str, Heard]:
        """Return who was heard between a layer and the next."""
        following = self.order[self.order.index(name) + 1 :]
        end = self.places[following[0]] if following else len(self.heard)
        return dict(list(self.heard.items())[self.places[name] : end])

    def quiet(self, name: str) -> list[str]:
        """Say who is silent right behind a layer, or nearly."""
        behind = self.behind(name)
        return silent(behind) + [n for n, rate in _rates(behind).items() if rate < _LEAST_RATE]

    def loud(self, name: str) -> bool:
        """Tell whether all neurons right behind a layer fire more than they need to."""
        rates = _rates(self.behind(name)).values()
        return len(rates) > 0 and min(rates) > _MOST_RATE


class _Work:
    """Runs the module and leaves no trace of it.

    Args:
        module: The module.
        run: Runs it on the batch.
        sites: Its layers, by name.
    """

    def __init__(self, module: nn.Module, run: Callable[[], Any], sites: dict[str, nn.Module]) -> None:
        self.module = module
        self.run = run
        self.sites = sites
        self.quantisers = [q for q in module.modules() if isinstance(q, QuantActivation) and not q.scale_given]

    def measure(self) -> _Measured:
        """Run once, with the scales of activations that this pass calls for."""
        snapshot, scales = Snapshot(self.module), dict[QuantActivation, Tensor]()
        while True:
            for quantiser in self.quantisers:
                quantiser.scale = scales.get(quantiser, quantiser.scale.new_empty(0))
            try:
                measured = self._pass()
            except NotCalibratedError as stop:
                values = stop.inputs.detach().flatten()
                stop.layer.calibrate(values[:: max(1, len(values) // _MOST_VALUES)])
                scales[stop.layer] = stop.layer.scale.clone()
            else:
                measured.scales = scales
                return measured
            finally:
                snapshot.restore()

    def _pass(self) -> _Measured:
        measured = _Measured()

        def hook(name: str, channels: int | None) -> Callable[..., None]:
            def on_output(_layer: nn.Module, _inputs: Any, output: Any) -> None:
                outputs = first_tensor(output)
                if outputs is not None:
                    measured.places.setdefault(name, len(measured.heard))
                    units_last = outputs if channels is None else outputs.movedim(-channels, -1)
                    measured.moments.setdefault(name, _Moments()).add(units_last)

            return on_output

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(metrics_muted(self.module))
            stack.enter_context(noise_frame(0, 0, 0))
            measured.heard = stack.enter_context(listening(self.module))
            for name, site in self.sites.items():
                kernel = getattr(site, "kernel_size", None)
                channels = None if kernel is None else len(kernel) + 1
                stack.callback(site.register_forward_hook(hook(name, channels)).remove)
            self.run()
        return measured


class _Site:
    """A layer whose first weights are changed."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        # That of torch.nn.utils.prune, where it has masked the weight.
        self.weight = next(w for n in ("weight", "weight_orig") if (w := layer._parameters.get(n)) is not None)
        bias = layer._parameters.get("bias")
        self.bias = bias if bias is not None and bias.requires_grad else None
        # Of quantised weights a constant of the network: its layer is centred alone.
        self.fixed = isinstance(layer, QuantisedWeight) and layer.scale_given
        scale = layer.weight_scale if isinstance(layer, QuantisedWeight) else None
        self._before = [None if each is None else each.clone() for each in (self.weight, self.bias, scale)]

    def scale(self, gain: float, mean: Tensor | None = None) -> float:
        """Multiply the pre-activations, of which ``mean`` is taken off; return the factor of the weight."""
        gain = 1.0 if self.fixed else gain
        self.weight.mul_(gain)
        if self.bias is not None:
            self.bias.copy_(gain * (self.bias if mean is None else self.bias - mean.to(self.bias)))
        if isinstance(self.layer, QuantisedWeight) and self.layer.weight_scale is not None:
            self.layer.weight_scale = self.layer.weight_scale * gain
        return gain

    def restore(self) -> None:
        """Return to the weights as they were given."""
        weight, bias, scale = self._before
        self.weight.copy_(torch.as_tensor(weight))
        if self.bias is not None:
            self.bias.copy_(torch.as_tensor(bias))
        if isinstance(self.layer, QuantisedWeight):
            self.layer.weight_scale = scale


def _initialise_site(
    work: _Work, name: str, measured: _Measured, target: float, centre: bool
) -> tuple[float, _Measured]:
    """Scale one layer, and again while what is behind it is silent; return its factor and a pass with it."""
    site = _Site(work.sites[name])
    centred = centre and site.bias is not None
    mean, spread = measured.moments[name].spread(centred)
    if not (math.isfinite(spread) and spread > 0):
        _say(f"'{name}' gives every sample the same, or what is not finite, so that there is nothing to scale")
        return 1.0, measured
    gain = site.scale(target / spread, mean if centred else None)
    measured = work.measure()
    reached = measured.moments[name].spread(centred)[1]
    if not site.fixed and not target / 2 < reached < 2 * target:
        site.restore()
        _say(f"'{name}' does not grow with its weights, as where a quantiser has a constant scale; it stays as it was")
        return 1.0, work.measure()
    if measured.loud(name):
        return _while_loud(work, name, site, measured, gain)
    return _until_heard(work, name, site, measured, gain)


def _while_loud(work: _Work, name: str, site: _Site, measured: _Measured, gain: float) -> tuple[float, _Measured]:
    """Halve the pre-activations as long as the neurons behind the layer fire often, and still enough after it."""
    for _ in range(0 if site.fixed else _MOST_HALVINGS):
        site.scale(0.5)
        halved = work.measure()
        if halved.quiet(name):
            site.scale(2.0)
            return gain, work.measure()
        gain, measured = gain / 2, halved
        if not measured.loud(name):
            break
    return gain, measured


def _until_heard(work: _Work, name: str, site: _Site, measured: _Measured, gain: float) -> tuple[float, _Measured]:
    """Double the pre-activations until nobody behind the layer is silent, or give the doublings back."""
    doublings = 0
    while (quiet := measured.quiet(name)) and not site.fixed and doublings < _MOST_DOUBLINGS:
        site.scale(2.0)
        measured, doublings = work.measure(), doublings + 1
    if not quiet:
        return gain * 2**doublings, measured
    site.scale(0.5**doublings)
    _say(f"{', '.join(quiet)} behind '{name}' stays silent, however large its inputs are: look at its threshold")
    return gain, work.measure()


def _rates(behind: dict[str, Heard]) -> dict[str, float]:
    """Return how often the neurons among some modules fire."""
    return {n: rate for n, each in behind.items() if is_neuron(each.module) and (rate := each.rate) is not None}


def _say(problem: str) -> None:
    warnings.warn(f"initialise: {problem}.", stacklevel=5)


def _runner(module: nn.Module, batch: Any) -> Callable[[], Any]:
    """Return a function that runs the module on the batch."""
    if callable(batch) and not isinstance(batch, Tensor):
        return cast("Callable[[], Any]", batch)
    inputs = batch[0] if isinstance(batch, list | tuple) else batch
    if not isinstance(inputs, Tensor):
        raise ValueError(
            f"initialise: the batch is a {type(batch).__name__} and not a tensor, or a tuple that starts with one: "
            "give a function that runs the module, as in initialise(model, lambda: model(**batch))."
        )
    inputs = inputs.to(next(module.parameters()).device)

    def run() -> Any:
        try:
            return module(inputs)
        except NotImplementedError as error:
            raise ValueError(
                f"initialise: {type(module).__name__} has no forward of its own: give a function that runs it, as in "
                "initialise(module, lambda: module.training_step(batch, 0)), or the callback InitialiseByData."
            ) from error

    return run


def _sites(module: nn.Module) -> dict[str, nn.Module]:
    """Return the layers whose weights may be scaled, by name."""
    owners: dict[Tensor, int] = {}
    for part in module.modules():
        for parameter in part._parameters.values():
            if parameter is not None:
                owners[parameter] = owners.get(parameter, 0) + 1
    # Recurrent weights, whose inputs are the spikes that they cause.
    neurons = [f"{n}." for n, p in module.named_modules() if isinstance(p, SpikingNeuron) or comes_from(p, "snntorch")]
    found: dict[str, nn.Module] = {}
    for name, part in module.named_modules():
        weight = part._parameters.get("weight", part._parameters.get("weight_orig"))
        fits = isinstance(part, nn.Linear | nn.modules.conv._ConvNd) and not name.startswith(tuple(neurons))
        if fits and weight is not None and weight.requires_grad and owners[weight] == 1 and bool(weight.any()):
            found[name] = part
    return found
