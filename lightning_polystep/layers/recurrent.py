"""A layer of hard neurons that feed their spikes back to each other."""

from torch import Tensor, nn

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism
from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.functional.recurrent import rlif
from lightning_polystep.layers.lif import SpikingNeuron


class RLIF(SpikingNeuron):
    """Hard recurrent leaky integrate-and-fire neurons, all to all, that start from rest at every call.

    The equations are those of :func:`~lightning_polystep.functional.rlif`, of which this is the module; the recurrent
    connections are the ``nn.Linear`` child ``recurrent``.

    Args:
        features: Number of neurons.
        beta: Share of the membrane kept per step; a float, or a tensor with one value per neuron.
        threshold: Membrane at which a neuron fires, shaped like ``beta``.
        bias: Whether the recurrent connections have a bias.
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
        >>> from lightning_polystep.layers import RLIF
        >>> RLIF(4, num_steps=5)(torch.randn(3, 4)).shape
        torch.Size([5, 3, 4])
    """

    def __init__(  # noqa: PLR0913
        self,
        features: int,
        beta: float | Tensor = 0.95,
        threshold: float | Tensor = 1.0,
        *,
        bias: bool = True,
        num_steps: int | None = None,
        reset_mechanism: ResetMechanism = "zero",
        reset_delay: bool = False,
        spike_on: SpikeOn = "ge",
        learn_beta: bool = False,
        learn_threshold: bool = False,
        on_backward: OnBackward = "raise",
        return_membrane: bool = False,
    ) -> None:
        super().__init__(
            beta,
            threshold,
            num_steps=num_steps,
            reset_mechanism=reset_mechanism,
            reset_delay=reset_delay,
            spike_on=spike_on,
            learn_beta=learn_beta,
            learn_threshold=learn_threshold,
            on_backward=on_backward,
            return_membrane=return_membrane,
        )
        self.recurrent = nn.Linear(features, features, bias=bias)

    def forward(self, current: Tensor) -> Tensor | LIFOutput:
        """Run the neurons.

        Args:
            current: ``(T, N, ..., features)``, or ``(N, ..., features)`` if the layer has ``num_steps``.

        Returns:
            Spikes ``(T, N, ..., features)``, or a :class:`~lightning_polystep.functional.LIFOutput` with
            ``return_membrane``.
        """
        return rlif(current, self.recurrent, self.beta, self.threshold, **self._options())
