"""Hard leaky integrate-and-fire neurons, as a function of their input alone."""

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn
from lightning_polystep.functional.neurons import LIFOutput, Neurons, ResetMechanism, make_neurons, run_neurons
from lightning_polystep.functional.non_differentiable import OnBackward


def lif(  # noqa: PLR0913
    current: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor = 1.0,
    *,
    num_steps: int | None = None,
    reset_mechanism: ResetMechanism = "zero",
    reset_delay: bool = False,
    spike_on: SpikeOn = "ge",
    on_backward: OnBackward = "raise",
    return_membrane: bool = False,
    name: str = "lif",
) -> Tensor | LIFOutput:
    r"""Run leaky integrate-and-fire neurons from rest over a time-varying or a constant current.

    With :math:`u_0 = 0`, at each step :math:`t = 1 \dots T`

    .. math::
        v_t &= \beta u_{t-1} + i_t \qquad s_t = H(v_t - \theta) \\
        u_t &= (1 - s_t) \, v_t \text{ (zero)}, \quad v_t - s_t \theta \text{ (subtract)}, \quad v_t \text{ (none)}

    where :math:`i` is ``current``, :math:`\beta` is ``beta`` clamped to [0, 1], :math:`\theta` is ``threshold`` and
    :math:`H` is :func:`~lightning_polystep.functional.heaviside`. With ``reset_delay`` the membrane of step t is
    :math:`v_t` and the reset comes in step t + 1: before the leak for ``"zero"``, after it for ``"subtract"``.

    Args:
        current: Float, ``(T, N, ...)``, or ``(N, ...)`` to be applied at each of ``num_steps`` steps; in units of the
            membrane per step.
        beta: Share of the membrane kept per step; a float, or a tensor that broadcasts to ``(N, ...)``: one per
            neuron is ``(features,)``, one per channel of an image ``(channels, 1, 1)``.
        threshold: Membrane at which a neuron fires, shaped like ``beta``.
        num_steps: T, for a constant current.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires (``"ge"``) or not (``"gt"``, as in snnTorch).
        on_backward: Whether a gradient that reaches a spike raises or is zero.
        return_membrane: Whether to keep and return :math:`u` as well.
        name: What errors call this layer.

    Returns:
        Spikes (zeros and ones) of shape ``(T, N, ...)`` in the dtype of ``current``; or, with ``return_membrane``,
        a :class:`LIFOutput` with the membrane in the same shape and dtype.

    Raises:
        TypeError: If ``current`` is not floating point.
        ValueError: If there is no time step, an option is misspelt, or ``beta`` or ``threshold`` does not broadcast.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        A current of a quarter reaches the threshold of 1 after four steps and starts again from 0.

        >>> import torch
        >>> from lightning_polystep.functional import lif
        >>> lif(torch.tensor([[0.25, 0.5]]), beta=1.0, num_steps=5)[:, 0].T
        tensor([[0., 0., 0., 1., 0.],
                [0., 1., 0., 1., 0.]])

    Source:
        ``snntorch.Leaky`` 1.0.0, spike for spike; the LIF node of NIR (reset to zero); Eshraghian et al. 2023,
        *Training spiking neural networks using lessons from deep learning*; arXiv 2605.01928 (``>=``, reset to zero).
    """
    neurons = make_neurons(
        current, beta, threshold, num_steps, reset_mechanism, reset_delay, spike_on, on_backward, name=name
    )
    if not return_membrane and _is_fused(current):
        return _fused(neurons, current, num_steps, spike_on)
    return run_neurons(neurons, return_membrane, late_reset_drops_current=False)


def _is_fused(current: Tensor) -> bool:
    """Tell whether the operator that runs all steps in one pass takes this current; a compiler makes its own.

    It has no gradient, so that with autograd the steps are written out.
    """
    return (
        not torch.is_grad_enabled()
        and current.dtype in (torch.float32, torch.float64)
        and current.device.type in ("cpu", "cuda")
        and current.numel() > 0
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
    )


def _fused(neurons: Neurons, current: Tensor, num_steps: int | None, spike_on: SpikeOn) -> Tensor:
    from lightning_polystep.kernels import lif_spikes  # noqa: PLC0415 - the kernels are made of these equations

    steps, shape = len(neurons.currents), neurons.currents[0].shape
    rows = current.reshape(1 if num_steps is not None else steps, -1)
    constants = (
        (value.reshape(1) if value.numel() == 1 else value.expand(shape).reshape(-1)).to(current.device)
        for value in (neurons.leak, neurons.level)
    )
    spikes = lif_spikes(rows, *constants, steps, neurons.reset_mechanism, neurons.reset_delay, spike_on)
    return spikes.reshape(steps, *shape)
