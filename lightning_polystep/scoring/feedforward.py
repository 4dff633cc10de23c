"""Score: recognise a feed-forward network of Linear layers and hard activations, and read its layers.

Such a network maps each sample on its own: Linear (or QuantLinear) layers with an element-wise step function
(:class:`~lightning_polystep.layers.StepFunction`), ReLU or nothing between two of them, and none after the last.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from lightning_polystep.functional import quantise_weight
from lightning_polystep.functional.quantisers import per_output
from lightning_polystep.layers import QuantLinear, StepFunction
from lightning_polystep.scoring.stack import Criterion, Layer, NotAStackError, Stack

_LOSSES = {nn.CrossEntropyLoss: "cross_entropy", nn.MSELoss: "mse"}


@dataclass(frozen=True)
class FeedforwardLayer(Layer):
    """A Linear layer and the activation behind it; None behind the last, and where the next Linear follows at once."""

    activation: StepFunction | nn.ReLU | None


@dataclass(frozen=True)
class FeedforwardStack(Stack):
    """A recognised feed-forward network with its loss.

    Args:
        network: The whole network.
        criterion: The loss.
        layers: Its layers, first to last.
    """

    layers: tuple[FeedforwardLayer, ...]

    between = "the activation of layer"
    # A vectorised function may round the same number otherwise at another place of a tensor, and step there.
    rounded = 2

    @property
    def loss(self) -> str:
        """What the kernels call the criterion."""
        return _LOSSES[type(self.criterion)]

    def steps(self, place: int) -> StepFunction | None:
        """Return the step function whose levels a layer hands on; None where its response is continuous.

        The quantiser of the next layer's inputs comes last and so decides; a ReLU before it becomes a part of it.

        Args:
            place: Of the layer, not the last.
        """
        following = self.layers[place + 1].linear
        quantiser = following.input_quant if isinstance(following, QuantLinear) else None
        activation = self.layers[place].activation
        return quantiser or (activation if isinstance(activation, StepFunction) else None)

    def is_linear(self, place: int) -> bool:
        """Tell whether a layer hands on its pre-activations as they are.

        Args:
            place: Of the layer, not the last.
        """
        return self.steps(place) is None and self.layers[place].activation is None

    def levels(self, place: int, dtype: torch.dtype) -> Tensor:
        """Return the levels of every step function between a layer and the next: what a layer hands on follows them.

        Args:
            place: Of the layer, not the last.
            dtype: Of its pre-activations.
        """
        functions = (self.layers[place].activation, self.steps(place))
        return torch.cat([f.levels(dtype) for f in functions if isinstance(f, StepFunction)])

    def hand_on(self, place: int, preactivation: Tensor) -> Tensor:
        """Return what the next layer multiplies its weights with.

        Args:
            place: Of the layer, not the last.
            preactivation: Of its units, any shape.
        """
        return effective_inputs(self.layers[place + 1].linear, self.activated(place, preactivation))

    def passed_on(self, place: int, inputs: Tensor, currents: Tensor) -> Tensor:
        """Return what a layer's activation makes of its pre-activations; those of the last are the scores."""
        del inputs
        return self.activated(place, currents)

    def activated(self, place: int, currents: Tensor) -> Tensor:
        """Return what a layer's activation makes of its pre-activations."""
        activation = self.layers[place].activation
        return currents if activation is None else cast("Tensor", activation.forward(currents))

    def has_time(self, place: int) -> bool:
        """Tell that there is no time axis."""
        del place
        return False


def read_feedforward(network: nn.Module, children: list[nn.Module], criterion: Criterion) -> FeedforwardStack:
    """Read a feed-forward network.

    Args:
        network: The whole network.
        children: Its layers in the order in which they run.
        criterion: Its loss.

    Raises:
        NotAStackError: Naming what is unknown.
    """
    layers = read_layers(behind_data(children))
    check_scores(layers)
    return FeedforwardStack(network, criterion, layers)


def check_scores(layers: Sequence[FeedforwardLayer]) -> None:
    """Refuse layers whose last outputs are not the scores."""
    if not layers or layers[-1].activation is not None:
        raise NotAStackError("the network does not end in a Linear layer, whose outputs are the scores")


def behind_data(children: Sequence[nn.Module]) -> Sequence[nn.Module]:
    """Leave out what acts on the data: it is not scored, and the check of the pass sees its output alone."""
    while children and (isinstance(children[0], StepFunction) or type(children[0]) is nn.ReLU):
        children = children[1:]
    return children


def read_layers(children: Sequence[nn.Module]) -> tuple[FeedforwardLayer, ...]:
    """Read Linear layers and the activations behind them.

    Args:
        children: In the order in which they run.

    Raises:
        NotAStackError: Naming what is neither.
    """
    layers: list[FeedforwardLayer] = []
    for child in children:
        after_linear = bool(layers) and layers[-1].activation is None
        if isinstance(child, nn.Linear) and type(child) in {nn.Linear, QuantLinear}:
            layers.append(FeedforwardLayer(child, None))
        elif after_linear and (isinstance(child, StepFunction) or type(child) is nn.ReLU):
            layers[-1] = FeedforwardLayer(layers[-1].linear, child)
        elif after_linear:
            raise NotAStackError(f"{type(child).__name__} behind a Linear is neither a StepFunction nor ReLU")
        else:
            raise NotAStackError(f"{type(child).__name__} is no Linear or QuantLinear where one should be")
    return tuple(layers)


def effective_rows(linear: nn.Linear, rows: Tensor, weights: Tensor) -> Tensor:
    """Return what latent weights act as.

    Args:
        linear: The layer.
        rows: Rows to which the weights belong, (R,).
        weights: Latent weights of these rows, (R, ..., D).

    Returns:
        Shape (R, ..., D): the weights themselves, or multiples of the rows' frozen scales.
    """
    if not isinstance(linear, QuantLinear) or linear.weight_scale is None:
        return weights
    codes, scale = codes_of_rows(linear, rows, weights)
    return codes * per_output(scale, codes.ndim, codes.dtype)


def codes_of_rows(linear: QuantLinear, rows: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return what latent weights are rounded to, whole numbers, and the scales of their rows, (R,) or ().

    Args:
        linear: The layer, whose weights are quantised.
        rows: Rows to which the weights belong, (R,).
        weights: Latent weights of these rows, (R, ..., D).
    """
    assert linear.weight_scale is not None
    scale = linear.weight_scale if linear.weight_scale.ndim == 0 else linear.weight_scale[rows]
    return quantise_weight(weights, scale, linear.weight_format, on_backward="zero"), scale


def effective_weight(linear: nn.Linear) -> Tensor:
    """Return the matrix that a layer multiplies with, (out, in)."""
    weight = linear.weight.detach()
    return effective_rows(linear, torch.arange(len(weight), device=weight.device), weight)


def effective_inputs(linear: nn.Linear, inputs: Tensor) -> Tensor:
    """Return what a layer multiplies its weights with: its inputs, quantised where it does that itself."""
    quantiser = linear.input_quant if isinstance(linear, QuantLinear) else None
    return inputs if quantiser is None else quantiser(inputs)
