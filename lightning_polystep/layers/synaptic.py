"""A layer of hard neurons whose synapses leak as well."""

from typing import ClassVar

from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism
from lightning_polystep.functional.non_differentiable import OnBackward
from lightning_polystep.functional.synaptic import synaptic
from lightning_polystep.layers.lif import SpikingNeuron


class Synaptic(SpikingNeuron):
    """Hard two-state leaky integrate-and-fire neurons that start from rest at every call.

    The equations are those of :func:`~lightning_polystep.functional.synaptic`, of which this is the module.

    Args:
        alpha: Share of the synaptic current kept per step; a float, or a tensor with one value per neuron.
        beta: Share of the membrane kept per step, likewise.
        threshold: Membrane at which a neuron fires, likewise.
        num_steps: T, if the input is a constant current; None if it has a time axis.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires (``"ge"``) or not (``"gt"``).
        learn_alpha: Whether ``alpha`` is a parameter instead of a buffer; one that is given stays one.
        learn_beta: Whether ``beta`` is a parameter instead of a buffer; one that is given stays one.
        learn_threshold: Whether ``threshold`` is a parameter instead of a buffer; one that is given stays one.
        on_backward: Whether a gradient that reaches a spike raises or is zero.
        return_membrane: Whether to return the membrane with the spikes.

    Raises:
        ValueError: If ``num_steps`` is below 1 or an option is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import Synaptic
        >>> Synaptic(alpha=0.5, beta=1.0, num_steps=4)(torch.tensor([[0.25, 0.5]]))[:, 0].T
        tensor([[0., 0., 1., 0.],
                [0., 1., 0., 1.]])
    """

    search_scale: ClassVar[dict[str, float]] = {"alpha": 0.1, **SpikingNeuron.search_scale}

    alpha: Tensor

    def __init__(  # noqa: PLR0913
        self,
        alpha: float | Tensor = 0.9,
        beta: float | Tensor = 0.95,
        threshold: float | Tensor = 1.0,
        *,
        num_steps: int | None = None,
        reset_mechanism: ResetMechanism = "zero",
        reset_delay: bool = False,
        spike_on: SpikeOn = "ge",
        learn_alpha: bool = False,
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
        self._own("alpha", alpha, learn_alpha)

    def forward(self, current: Tensor) -> Tensor | LIFOutput:
        """Run the neurons.

        Args:
            current: ``(T, N, ...)``, or ``(N, ...)`` if the layer has ``num_steps``.

        Returns:
            Spikes ``(T, N, ...)``, or a :class:`~lightning_polystep.functional.LIFOutput` with ``return_membrane``.
        """
        return synaptic(current, self.alpha, self.beta, self.threshold, **self._options())
