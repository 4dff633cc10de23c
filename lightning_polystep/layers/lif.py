"""A layer of hard leaky integrate-and-fire neurons."""

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lightning_polystep.functional.heaviside import SpikeOn, check_step_options
from lightning_polystep.functional.lif import lif
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism, check_lif_options
from lightning_polystep.functional.non_differentiable import OnBackward


class SpikingNeuron(nn.Module):
    """What the layers of hard neurons share: constants that they own, options, and how both are shown.

    Args:
        beta: Share of the membrane kept per step; a float, or a tensor with one value per neuron.
        threshold: Membrane at which a neuron fires, shaped like ``beta``.
        num_steps: T, if the input is a constant current; None if it has a time axis.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires (``"ge"``) or not (``"gt"``).
        learn_beta: Whether ``beta`` is a parameter instead of a buffer; one that is given stays one.
        learn_threshold: Whether ``threshold`` is a parameter instead of a buffer; one that is given stays one.
        on_backward: Whether a gradient that reaches a spike raises or is zero.
        return_membrane: Whether to return the membrane with the spikes.

    Raises:
        ValueError: If ``num_steps`` is below 1 or an option is misspelt.
    """

    # How far one unit of PolyStep's radius moves the parameter: a radius fit for weights would throw a leak, which
    # lives in [0, 1], from one end to the other.
    search_scale: ClassVar[dict[str, float]] = {"beta": 0.1, "threshold": 0.3}

    beta: Tensor
    threshold: Tensor

    def __init__(  # noqa: PLR0913
        self,
        beta: float | Tensor = 0.95,
        threshold: float | Tensor = 1.0,
        *,
        num_steps: int | None = None,
        reset_mechanism: ResetMechanism = "zero",
        reset_delay: bool = False,
        spike_on: SpikeOn = "ge",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        on_backward: OnBackward = "raise",
        return_membrane: bool = False,
    ) -> None:
        super().__init__()
        check_lif_options(num_steps, reset_mechanism, type(self).__name__)
        check_step_options(spike_on, on_backward, type(self).__name__)
        self.num_steps = num_steps
        self.reset_mechanism = reset_mechanism
        self.reset_delay = reset_delay
        self.spike_on = spike_on
        self.on_backward = on_backward
        self.return_membrane = return_membrane
        # As given: under vmap the values cannot be read, and float32 would show 0.95 as 0.949999988.
        self._given: dict[str, str] = {}
        self._own("beta", beta, learn_beta)
        self._own("threshold", threshold, learn_threshold)

    def extra_repr(self) -> str:
        """Show the neuron's constants, and options where they differ from the plain neuron."""
        parts = [f"{name}={value}" for name, value in self._given.items()]
        if self.num_steps is not None:
            parts.append(f"num_steps={self.num_steps}")
        parts.append(f"reset_mechanism={self.reset_mechanism!r}")
        if self.reset_delay:
            parts.append("reset_delay=True")
        parts.append(f"spike_on={self.spike_on!r}")
        if self.return_membrane:
            parts.append("return_membrane=True")
        return ", ".join(parts)

    def _options(self) -> dict[str, Any]:
        return {
            "num_steps": self.num_steps,
            "reset_mechanism": self.reset_mechanism,
            "reset_delay": self.reset_delay,
            "spike_on": self.spike_on,
            "on_backward": self.on_backward,
            "return_membrane": self.return_membrane,
            "name": f"{type(self).__name__}({self.extra_repr()})",
        }

    def _own(self, name: str, value: float | Tensor, learn: bool) -> None:
        self._given[name] = _text(value, learn or isinstance(value, nn.Parameter))
        if isinstance(value, nn.Parameter):  # whoever gives a parameter means this one, shared or frozen as it is
            self.register_parameter(name, value)
            return
        # Cloned, so that layers built from one tensor do not share it.
        tensor = value.detach().clone() if isinstance(value, Tensor) else torch.tensor(float(value))
        if learn:
            self.register_parameter(name, nn.Parameter(tensor))
        else:
            self.register_buffer(name, tensor)


class LIF(SpikingNeuron):
    """Hard leaky integrate-and-fire neurons that start from rest at every call and keep nothing between calls.

    The equations are those of :func:`~lightning_polystep.functional.lif`, of which this is the module.

    Args:
        beta: Share of the membrane kept per step; a float, or a tensor with one value per neuron.
        threshold: Membrane at which a neuron fires, shaped like ``beta``.
        num_steps: T, if the input is a constant current; None if it has a time axis.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires (``"ge"``) or not (``"gt"``).
        learn_beta: Whether ``beta`` is a parameter instead of a buffer; one that is given stays one.
        learn_threshold: Whether ``threshold`` is a parameter instead of a buffer; one that is given stays one.
        on_backward: Whether a gradient that reaches a spike raises or is zero.
        return_membrane: Whether to return the membrane with the spikes.

    Raises:
        ValueError: If ``num_steps`` is below 1 or an option is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import LIF
        >>> LIF(beta=1.0, num_steps=5)(torch.tensor([[0.25, 0.5]]))[:, 0].T
        tensor([[0., 0., 0., 1., 0.],
                [0., 1., 0., 1., 0.]])
    """

    def forward(self, current: Tensor) -> Tensor | LIFOutput:
        """Run the neurons.

        Args:
            current: ``(T, N, ...)``, or ``(N, ...)`` if the layer has ``num_steps``.

        Returns:
            Spikes ``(T, N, ...)``, or a :class:`~lightning_polystep.functional.LIFOutput` with ``return_membrane``.
        """
        return lif(current, self.beta, self.threshold, **self._options())


def _text(value: float | Tensor, learned: bool) -> str:
    if isinstance(value, Tensor):
        shown = f"tensor{list(value.shape)}" if value.ndim else f"{value.item():g}"
    else:
        shown = str(value)
    return f"{shown} (learned)" if learned else shown
