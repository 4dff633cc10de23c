"""Hard leaky integrate-and-fire neurons whose synapses leak as well."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism, make_neurons, per_neuron, run_neurons
from lightning_polystep.functional.non_differentiable import OnBackward


def synaptic(  # noqa: PLR0913
    current: Tensor,
    alpha: float | Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    *,
    num_steps: int | None = None,
    reset_mechanism: ResetMechanism = "zero",
    reset_delay: bool = False,
    spike_on: SpikeOn = "ge",
    on_backward: OnBackward = "raise",
    return_membrane: bool = False,
    name: str = "synaptic",
) -> Tensor | LIFOutput:
    r"""Run two-state leaky integrate-and-fire neurons from rest.

    With :math:`c_0 = u_0 = 0`, at each step :math:`t = 1 \dots T`

    .. math::
        c_t &= \alpha c_{t-1} + i_t \qquad v_t = \beta u_{t-1} + c_t \qquad s_t = H(v_t - \theta) \\
        u_t &= (1 - s_t) \, v_t \text{ (zero)}, \quad v_t - s_t \theta \text{ (subtract)}, \quad v_t \text{ (none)}

    where :math:`i` is ``current``, :math:`\alpha` and :math:`\beta` are ``alpha`` and ``beta`` clamped to [0, 1],
    :math:`\theta` is ``threshold``, and :math:`c`, the synaptic current, is never reset. With ``reset_delay`` the
    membrane of step t is :math:`v_t` and the reset comes in step t + 1, after leak and current: ``"zero"`` then drops
    the current of that step, as in snnTorch, and unlike :func:`~lightning_polystep.functional.lif`.

    Args:
        current: Float, ``(T, N, ...)``, or ``(N, ...)`` to be applied at each of ``num_steps`` steps.
        alpha: Share of the synaptic current kept per step; a float, or a tensor that broadcasts to ``(N, ...)``.
        beta: Share of the membrane kept per step, likewise.
        threshold: Membrane at which a neuron fires, likewise.
        num_steps: T, for a constant current.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires (``"ge"``) or not (``"gt"``, as in snnTorch).
        on_backward: Whether a gradient that reaches a spike raises or is zero.
        return_membrane: Whether to keep and return :math:`u` as well.
        name: What errors call this layer.

    Returns:
        Spikes (zeros and ones) of shape ``(T, N, ...)`` in the dtype of ``current``; or, with ``return_membrane``, a
        :class:`~lightning_polystep.functional.LIFOutput`.

    Raises:
        TypeError: If ``current`` is not floating point.
        ValueError: If there is no time step, an option is misspelt, or a constant does not broadcast.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        Two pulses of a half charge the membrane to 0.5, 1.25 (a spike), and after the reset what is left to 0.125.

        >>> import torch
        >>> from lightning_polystep.functional import synaptic
        >>> pulse = torch.tensor([[0.5], [0.5], [-0.25]])
        >>> synaptic(pulse, alpha=0.5, beta=1.0, return_membrane=True).membrane.T
        tensor([[0.5000, 0.0000, 0.1250]])

    Source:
        ``snntorch.Synaptic`` 1.0.0, spike for spike.
    """
    neurons = make_neurons(
        current, beta, threshold, num_steps, reset_mechanism, reset_delay, spike_on, on_backward, name=name
    )
    keep = per_neuron("alpha", alpha, neurons.currents[0], name).clamp(0, 1)
    return run_neurons(neurons, return_membrane, currents=_synaptic(neurons.currents, keep))


def _synaptic(currents: Sequence[Tensor], keep: Tensor) -> Iterator[Tensor]:
    synapse = torch.zeros_like(currents[0])
    for current in currents:
        synapse = keep * synapse + current
        yield synapse
