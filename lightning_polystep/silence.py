"""Layers that say nothing: neurons that never fire or always do, signs and staircases that are stuck at one level."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from lightning_polystep.interop.adapters import comes_from
from lightning_polystep.layers.lif import SpikingNeuron
from lightning_polystep.sites import looking_on

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Their outputs are no one's silence: real numbers of weights, gains that may well start at 0, losses.
_NOT_HEARD = (
    nn.Linear,
    nn.modules.conv._ConvNd,
    nn.Embedding,
    nn.EmbeddingBag,
    nn.modules.batchnorm._NormBase,
    nn.LayerNorm,
    nn.GroupNorm,
    nn.modules.loss._Loss,
    Metric,
)
_LIBRARIES = ("snntorch", "norse", "spikingjelly")
# From this share of its units on, a layer counts as silent: the few that are left carry no batch.
_DEAD_SHARE = 0.95
# What makes an observation one: so many samples or steps, and numbers.
_FEWEST_ROWS, _FEWEST_VALUES = 8, 64


class Heard:
    """What a module was given and what it made of it, summed up over its calls.

    Args:
        name: Of the module.
        module: The module.
    """

    def __init__(self, name: str, module: nn.Module) -> None:
        self.name = name
        self.module = module
        # Neurons that take all steps at once have the time axis in front of that of the samples.
        self.inputs, self.outputs = (_Values(axes=2 if is_neuron(module) else 1) for _ in range(2))

    @property
    def problem(self) -> str:
        """What is wrong with the module, as the end of a sentence; empty where nothing is, or it cannot be told."""
        outputs, inputs = self.outputs, self.inputs
        if outputs.rows < _FEWEST_ROWS or outputs.count < _FEWEST_VALUES or not inputs.vary or _starts_at_zero(self):
            return ""
        if outputs.constant:
            return _stuck_at(float(outputs.low), self.module)
        if outputs.varying is None or inputs.varying is None or outputs.varying.shape != inputs.varying.shape:
            return ""
        driven = inputs.varying
        alive, units = int((outputs.varying & driven).sum()), int(driven.sum())
        if alive > (1 - _DEAD_SHARE) * units:
            return ""
        return f"reacts to its inputs in {alive} of {units} units"

    @property
    def rate(self) -> float | None:
        """Share of ones, of a module whose outputs are zeros and ones; None for others."""
        outputs = self.outputs
        return float(outputs.total) / outputs.count if outputs.count and bool(outputs.binary) else None


class _Values:
    """Range of tensors, and which of their places hold more than one value over calls and along the first dimensions.

    Args:
        axes: How many dimensions are those of time and samples, at the most, where there is another one.
    """

    def __init__(self, axes: int) -> None:
        self.axes = axes
        self.rows = self.count = 0
        self.first: Tensor | None = None
        self.varying: Tensor | None = None
        self.low, self.high = torch.tensor(torch.inf), torch.tensor(-torch.inf)
        self.total, self.binary = torch.tensor(0.0), torch.tensor(True)

    def add(self, values: Tensor) -> None:
        values = values.detach().float() if values.dtype == torch.bool else values.detach()
        values = values.flatten(0, min(self.axes, max(1, values.ndim - 1)) - 1)
        if self.count == 0:
            self.first, self.varying = values[0].clone(), torch.zeros_like(values[0], dtype=torch.bool)
        if self.first is not None and self.first.shape == values.shape[1:]:
            assert self.varying is not None
            self.varying |= (values != self.first).any(0)
        else:  # of several shapes, as images of several sizes
            self.first = self.varying = None
        low, high = values.aminmax()
        self.low, self.high = torch.minimum(self.low.to(low), low), torch.maximum(self.high.to(high), high)
        self.total = self.total.to(low.device) + values.float().sum()
        self.binary = self.binary.to(low.device) & ((values == 0) | (values == 1)).all()
        self.rows += len(values)
        self.count += values.numel()

    @property
    def constant(self) -> bool:
        return bool(self.low == self.high)

    @property
    def vary(self) -> bool:
        """Whether anything varies from sample to sample, or from call to call."""
        return not self.constant if self.varying is None else bool(self.varying.any())


@contextmanager
def listening(module: nn.Module) -> Iterator[dict[str, Heard]]:
    """Sum up what the modules of a tree say while the body runs it; probes do not count.

    Heard are modules of any library without weights of their own (neurons, steps, quantisers, ReLU), as a whole, and
    the modules around them.

    Args:
        module: Root of the tree.

    Yields:
        What was heard, by name, in the order of the first calls.

    Example:
        >>> network = nn.Sequential(nn.Linear(4, 8), nn.Hardtanh(5.0, 6.0))
        >>> with listening(network) as heard:
        ...     _ = network(torch.randn(16, 4))
        >>> silent(heard)
        ["'1' (Hardtanh) gives 5 whatever its inputs are"]
    """
    heard: dict[str, Heard] = {}
    with ExitStack() as hooks:
        for name, part in _audible(module):
            if isinstance(part, torch.jit.ScriptModule):  # compiled code asks no hooks
                continue
            hooks.callback(part.register_forward_hook(_hearing(name, heard), with_kwargs=True).remove)
        yield heard


def silent(heard: dict[str, Heard]) -> list[str]:
    """Say which modules are silent, each by its name, its class and what it does.

    Of modules within each other the innermost is named. One whose inputs do not vary has no part in its silence.

    Args:
        heard: What :func:`listening` gave.
    """
    problems = {name: problem for name, each in heard.items() if (problem := each.problem)}
    innermost = [name for name in problems if not any(other.startswith(f"{name}.") for other in problems)]
    return [f"'{name}' ({type(heard[name].module).__name__}) {problems[name]}" for name in innermost]


def first_tensor(values: Any) -> Tensor | None:
    """Return the first tensor of floats or truth values in what a module was given or returned; None without one.

    Args:
        values: A tensor; or a tuple, list or dictionary, of which the first is asked.
    """
    if isinstance(values, Tensor):
        fit = values.is_floating_point() or values.dtype == torch.bool
        batched = torch._C._functorch.is_batchedtensor(values)
        return values if fit and not batched and values.ndim > 0 and values.numel() > 0 else None
    if isinstance(values, dict):
        values = list(values.values())
    if isinstance(values, Sequence) and not isinstance(values, str):
        return next((tensor for each in values if (tensor := first_tensor(each)) is not None), None)
    return None


def is_neuron(module: nn.Module) -> bool:
    """Tell whether a module is a spiking neuron of this package or of a library that is known."""
    return isinstance(module, SpikingNeuron) or any(comes_from(module, library) for library in _LIBRARIES)


def _audible(root: nn.Module) -> list[tuple[str, nn.Module]]:
    found: list[tuple[str, nn.Module]] = []

    def visit(name: str, part: nn.Module) -> None:
        light = not isinstance(part, _CONTAINERS) and all(p.ndim < 2 for p in part.parameters())
        if part is not root and not isinstance(part, (*_CONTAINERS, *_NOT_HEARD)):
            found.append((name, part))
        if part is root or not light:
            for child, module in part.named_children():
                visit(f"{name}.{child}" if name else child, module)

    visit("", root)
    return found


def _hearing(name: str, heard: dict[str, Heard]) -> Callable[..., None]:
    @looking_on
    def hook(module: nn.Module, args: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        inputs, outputs = first_tensor([*args, *named.values()]), first_tensor(output)
        if inputs is not None and outputs is not None:
            each = heard.setdefault(name, Heard(name, module))
            each.inputs.add(inputs)
            each.outputs.add(outputs)

    return hook


def _stuck_at(value: float, module: nn.Module) -> str:
    if is_neuron(module) and value in {0.0, 1.0}:
        return "never fires" if value == 0 else "fires always"
    return f"gives {value + 0.0:g} whatever its inputs are"


def _starts_at_zero(each: Heard) -> bool:
    """Tell whether a module has weights that are all 0, as last layers of residual branches start on purpose."""
    return any(not bool(p.any()) for n, p in each.module.named_parameters() if not n.endswith("bias") and p.numel() > 0)
