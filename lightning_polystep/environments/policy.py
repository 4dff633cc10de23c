"""Small networks as plain arrays of many candidates: what a compiled rollout calls at every step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from lightning_polystep.environments.protocol import World
from lightning_polystep.functional import quantise_weight
from lightning_polystep.kernels.bisection import bisect
from lightning_polystep.layers import QuantLinear, StepFunction

_LAYERS = (
    "a policy is a Linear or QuantLinear layer, or a Sequential of them with Tanh or a step function (Sign, "
    "QuantActivation, Staircase, Heaviside) between each two"
)


class Arrays(NamedTuple):
    """Networks of K candidates.

    Args:
        sizes: Features of the input, between each two layers, and of the output, (L + 1,).
        weights: The rows of all layers, each with its bias behind it, (K, P).
        jumps: Where the step functions between layers jump, (L - 1, most jumps).
        levels: Their values before the first jump and from each one on, (L - 1, most jumps + 1).
        counts: How many jumps each has, (L - 1,); -1 for tanh.
    """

    sizes: NDArray[np.int64]
    weights: NDArray[np.float64]
    jumps: NDArray[np.float64]
    levels: NDArray[np.float64]
    counts: NDArray[np.int64]


class Policy:
    """K candidates of a network, ready to be rolled out.

    Weights are quantised once, not at every step, and step functions are tables of their jumps, bisected to the last
    bit; sums run in float64.

    Args:
        network: ``nn.Linear`` or a QuantLinear with float inputs, or an ``nn.Sequential`` of them with ``nn.Tanh`` or a
            :class:`~lightning_polystep.layers.StepFunction` between each two; ``nn.Identity`` is passed over.
        parameters: Values of some of its parameters by name, (K, ...) each; the others are those of the network. None
            for the network as it is, K = 1.

    Raises:
        ValueError: If the network has other layers, or names or shapes are not those of its parameters.

    Example:
        >>> from lightning_polystep.layers import Sign
        >>> network = nn.Sequential(nn.Linear(4, 8), Sign(), nn.Linear(8, 2))
        >>> policy = Policy(network, {"0.bias": torch.randn(3, 8)})
        >>> policy.candidates, policy.sizes
        (3, [4, 8, 2])
    """

    def __init__(self, network: nn.Module, parameters: Mapping[str, Tensor] | None = None) -> None:
        given = dict(parameters or {})
        own = dict(network.named_parameters())
        for name, values in given.items():
            if name not in own or values.shape[1:] != own[name].shape:
                raise ValueError(f"Policy: the network has no parameter {name} of shape {tuple(values.shape[1:])}.")
        self.candidates = next((len(values) for values in given.values()), 1)
        linears, self._tables = _divided(network)
        self.sizes = [linears[0][1].in_features, *(linear.out_features for _, linear in linears)]
        self._weights = torch.cat([self._rows(name, linear, given) for name, linear in linears], dim=1)

    def _rows(self, prefix: str, linear: nn.Linear, given: Mapping[str, Tensor]) -> Tensor:
        """Return the rows of a layer, each with its bias behind it, (K, out * (in + 1)), float64."""

        def values(name: str, own: Tensor) -> Tensor:
            chosen = given.get(f"{prefix}{name}")
            return own.detach().expand(self.candidates, *own.shape) if chosen is None else chosen

        weight = values("weight", linear.weight)
        if isinstance(linear, QuantLinear) and linear.weight_format != "float":
            weight = _quantised(linear, weight)
        bias = weight.new_zeros(self.candidates, linear.out_features)
        if linear.bias is not None:
            bias = values("bias", linear.bias)
        return torch.cat([weight, bias[..., None]], dim=2).flatten(1).double().cpu()

    def check(self, environment: World) -> None:
        """Refuse an environment with other observations or actions.

        Raises:
            ValueError: Naming both.
        """
        wanted = (environment.observations, environment.outputs)
        if wanted != (self.sizes[0], self.sizes[-1]):
            raise ValueError(
                f"{environment.name} gives {wanted[0]} observations and takes {wanted[1]} outputs, and the policy has "
                f"sizes {self.sizes}: make its first and last size those."
            )

    def arrays(self) -> Arrays:
        """Return the candidates as compiled code takes them."""
        widest = max([1, *(len(table.jumps) for table in self._tables if table is not None)])
        jumps, levels = np.zeros((len(self._tables), widest)), np.zeros((len(self._tables), widest + 1))
        counts = np.full(len(self._tables), -1, dtype=np.int64)
        for layer, table in enumerate(self._tables):
            if table is not None:
                counts[layer] = len(table.jumps)
                jumps[layer, : counts[layer]], levels[layer, : counts[layer] + 1] = table.jumps, table.levels
        return Arrays(np.asarray(self.sizes), self._weights.numpy(), jumps, levels, counts)


@dataclass(frozen=True)
class _Table:
    """A step function: the numbers at which it jumps, and its values before the first and from each one on."""

    jumps: NDArray[np.float64]
    levels: NDArray[np.float64]


def _divided(network: nn.Module) -> tuple[list[tuple[str, nn.Linear]], list[_Table | None]]:
    """Return the layers of a network, each with its prefix, and what is between them (None for tanh)."""
    named = list(network.named_children()) if isinstance(network, nn.Sequential) else [("", network)]
    named = [(name, child) for name, child in named if not isinstance(child, nn.Identity)]
    linears, between = named[::2], named[1::2]
    for _, child in linears:
        if not isinstance(child, nn.Linear) or len(linears) != len(between) + 1:
            raise ValueError(f"Policy: {_LAYERS}, got {type(network).__name__} with {type(child).__name__}.")
        if isinstance(child, QuantLinear) and child.input_quant is not None:
            raise ValueError("Policy: a QuantLinear with input_quant has no place: put the QuantActivation before it.")
        if not isinstance(child, QuantLinear) and type(child).forward is not nn.Linear.forward:
            raise ValueError(f"Policy: {_LAYERS}, got {type(child).__name__}, which computes its output itself.")
    tables: list[_Table | None] = []
    for _, child in between:
        if isinstance(child, StepFunction):
            tables.append(_table(child))
        elif isinstance(child, nn.Tanh):
            tables.append(None)
        else:
            raise ValueError(f"Policy: {_LAYERS}, got {type(child).__name__}.")
    return [(f"{name}." if name else "", child) for name, child in linears], tables  # type: ignore[misc]


def _table(step: StepFunction) -> _Table:
    """Find where a step function jumps, in float64, as sums of the compiled loop are."""
    ends = torch.tensor([torch.finfo(torch.float32).min, torch.finfo(torch.float32).max], dtype=torch.float64)
    most = len(step.levels(torch.float64))
    with torch.no_grad():
        first, _, jumps, values = bisect(lambda _, x: step(x)[:, None], ends[:1], ends[1:], most)
    return _Table(jumps.cpu().numpy(), torch.cat([first, values])[:, 0].double().cpu().numpy())


def _quantised(linear: QuantLinear, weight: Tensor) -> Tensor:
    """Return the weights with which a layer of each candidate acts, (K, out, in), by its frozen scales."""
    scale = linear.weight_scale
    assert scale is not None
    codes = partial(quantise_weight, scale=scale, weight_format=linear.weight_format, name=str(linear))
    by_unit = codes(weight.transpose(0, 1).flatten(1)).reshape(weight.shape[1], weight.shape[0], weight.shape[2])
    return by_unit.transpose(0, 1) * (scale[:, None] if scale.ndim else scale).to(weight)
