"""Hard leaky integrate-and-fire neurons that feed their spikes back to each other."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.neurons import LIFOutput, ResetMechanism, make_neurons, run_neurons
from lightning_polystep.functional.non_differentiable import OnBackward


def rlif(  # noqa: PLR0913
    current: Tensor,
    recurrent: Callable[[Tensor], Tensor],
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    *,
    num_steps: int | None = None,
    reset_mechanism: ResetMechanism = "zero",
    reset_delay: bool = False,
    spike_on: SpikeOn = "ge",
    on_backward: OnBackward = "raise",
    return_membrane: bool = False,
    name: str = "rlif",
) -> Tensor | LIFOutput:
    r"""Run recurrent leaky integrate-and-fire neurons from rest.

    With :math:`u_0 = s_0 = 0`, at each step :math:`t = 1 \dots T`

    .. math::
        v_t &= \beta u_{t-1} + i_t + R(s_{t-1}) \qquad s_t = H(v_t - \theta) \\
        u_t &= (1 - s_t) \, v_t \text{ (zero)}, \quad v_t - s_t \theta \text{ (subtract)}, \quad v_t \text{ (none)}

    where :math:`i` is ``current``, :math:`R` is ``recurrent``, :math:`\beta` is ``beta`` clamped to [0, 1] and
    :math:`\theta` is ``threshold``. With ``reset_delay`` the membrane of step t is :math:`v_t` and the reset comes in
    step t + 1, after leak and currents: ``"zero"`` then drops the currents of that step, as in snnTorch, and unlike
    :func:`~lightning_polystep.functional.lif`.

    Args:
        current: Float, ``(T, N, ...)``, or ``(N, ...)`` to be applied at each of ``num_steps`` steps.
        recurrent: Maps the spikes of a step, ``(N, ...)``, to a current of the same shape.
        beta: Share of the membrane kept per step; a float, or a tensor that broadcasts to ``(N, ...)``.
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
        ValueError: If there is no time step, an option is misspelt, or ``recurrent`` or a constant does not fit.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        Two neurons that pass a spike back and forth; a pulse starts it.

        >>> import torch
        >>> from lightning_polystep.functional import rlif
        >>> pulse = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
        >>> rlif(pulse, lambda spikes: spikes.flip(-1), beta=0.5)
        tensor([[1., 0.],
                [0., 1.],
                [1., 0.]])

    Source:
        ``snntorch.RLeaky`` 1.0.0 with ``all_to_all=True``, spike for spike.
    """
    neurons = make_neurons(
        current, beta, threshold, num_steps, reset_mechanism, reset_delay, spike_on, on_backward, name=name
    )
    return run_neurons(neurons, return_membrane, feedback=partial(_feedback, recurrent=recurrent, name=name))


def _feedback(spikes: Tensor, recurrent: Callable[[Tensor], Tensor], name: str) -> Tensor:
    current = recurrent(spikes)
    if current.shape != spikes.shape:
        raise ValueError(
            f"{name}: recurrent maps spikes of shape {tuple(spikes.shape)} to a current of another, "
            f"{tuple(current.shape)}."
        )
    return current
