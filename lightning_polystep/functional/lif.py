"""Hard leaky integrate-and-fire neurons, as a function of their input alone."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import SpikeOn, check_step_options, heaviside
from lightning_polystep.functional.non_differentiable import OnBackward

ResetMechanism = Literal["zero", "subtract", "none"]


class LIFOutput(NamedTuple):
    """What the neurons did at every step, time first."""

    spikes: Tensor
    membrane: Tensor


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
    check_lif_options(num_steps, reset_mechanism, name)
    check_step_options(spike_on, on_backward, name)
    currents = current_per_step(current, num_steps, name)
    leak = per_neuron("beta", beta, currents[0], name).clamp(0, 1)
    level = per_neuron("threshold", threshold, currents[0], name)
    if not return_membrane and _is_fused(current):
        return _fused(current, num_steps, leak, level, reset_mechanism, reset_delay, spike_on)
    fires = partial(heaviside, spike_on=spike_on, on_backward=on_backward, name=name)
    steps = _simulate(currents, leak, level, fires, reset_mechanism, reset_delay)
    return read_out(steps, len(currents), return_membrane)


def check_lif_options(num_steps: int | None, reset_mechanism: str, name: str) -> None:
    """Refuse what no current could make right.

    Args:
        num_steps: To be None or at least 1.
        reset_mechanism: To be ``"zero"``, ``"subtract"`` or ``"none"``.
        name: What the error calls the layer.

    Raises:
        ValueError: If either is something else.
    """
    if num_steps is not None and num_steps < 1:
        raise ValueError(f"{name}: num_steps must be at least 1, or None for a current that has a time axis.")
    if reset_mechanism not in ("zero", "subtract", "none"):
        raise ValueError(f'{name}: reset_mechanism must be "zero", "subtract" or "none", got {reset_mechanism!r}.')


def spike_and_reset(
    membrane: Tensor,
    owed: Tensor,
    level: Tensor,
    fires: Callable[[Tensor], Tensor],
    reset_mechanism: ResetMechanism,
    reset_delay: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Fire from an integrated membrane and reset it.

    ``owed`` is a reset that the next step still has to make: a delayed one, or, as in snnTorch, a subtraction where
    the immediate one left the membrane at the threshold. A spike at that next step then subtracts nothing more.
    The one departure from snnTorch is an immediate reset to zero with a threshold below 0, where snnTorch doubles
    membranes and this follows the equations.

    Args:
        membrane: After leak and current; a delayed reset to zero is the caller's.
        owed: What the step before returned.
        level: The threshold.
        fires: The hard step.
        reset_mechanism: As in :func:`lif`.
        reset_delay: As there.

    Returns:
        Spikes, the membrane after this step, and what is owed to the next.
    """
    if reset_mechanism == "subtract":
        membrane = membrane - owed * level
    spike = fires(membrane - level)
    if reset_delay:
        return spike, membrane, spike
    if reset_mechanism == "zero":
        membrane = (1 - spike) * membrane
    elif reset_mechanism == "subtract":
        membrane = membrane - (spike - owed) * level
        owed = fires(membrane - level)
    return spike, membrane, owed


def current_per_step(current: Tensor, num_steps: int | None, name: str) -> Sequence[Tensor]:
    """Return the current of every step, ``(T, N, ...)`` unbound, or the same one ``num_steps`` times.

    Raises:
        TypeError: If it is not floating point.
        ValueError: If there is no time step.
    """
    if not current.is_floating_point():
        raise TypeError(f"{name}: current must be floating point, got {current.dtype}; call .float() on it.")
    if num_steps is not None:
        return [current] * num_steps
    if current.ndim == 0 or len(current) == 0:
        raise ValueError(
            f"{name}: current of shape {tuple(current.shape)} has no time step; "
            "give it as (T, N, ...) with T >= 1, or pass num_steps for a constant current (N, ...)."
        )
    return current.unbind()


def per_neuron(role: str, value: float | Tensor, step_current: Tensor, name: str) -> Tensor:
    """Return a constant of the neurons as a tensor that broadcasts to the current of one step.

    Raises:
        ValueError: If it does not broadcast.
    """
    if not isinstance(value, Tensor):
        # Left on the CPU, where a 0-dimensional tensor combines with any device without a copy.
        return torch.tensor(value, dtype=step_current.dtype, device="cpu")
    try:
        fits = torch.broadcast_shapes(value.shape, step_current.shape) == step_current.shape
    except RuntimeError:
        fits = False
    if not fits:
        raise ValueError(
            f"{name}: {role} of shape {tuple(value.shape)} does not broadcast to "
            f"the current of one step, {tuple(step_current.shape)}."
        )
    return value.to(step_current.dtype)


def read_out(steps: Iterator[tuple[Tensor, Tensor]], count: int, return_membrane: bool) -> Tensor | LIFOutput:
    """Stack the spikes, and with ``return_membrane`` the membranes, of all ``count`` steps."""
    if not return_membrane:
        return _over_time((step[:1] for step in steps), count)[0]
    return LIFOutput(*_over_time(steps, count))


def _over_time(steps: Iterable[tuple[Tensor, ...]], count: int) -> list[Tensor]:
    """Stack what the steps yield, each place of the tuple for itself.

    Without autograd, each step is written where it belongs at once: a list of all steps beside their stack would take
    twice the memory. Under vmap a tensor made from the first step is batched as it is, and that decides for all steps,
    because leak, current and level have had their part in the first one already.
    """
    if torch.is_grad_enabled():
        return [torch.stack(values) for values in zip(*steps, strict=True)]
    stacks: list[Tensor] = []
    for t, values in enumerate(steps):
        stacks = stacks or [value.new_empty((count, *value.shape)) for value in values]
        for stack, value in zip(stacks, values, strict=True):
            stack[t].copy_(value)
    return stacks


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


def _fused(
    current: Tensor,
    num_steps: int | None,
    leak: Tensor,
    level: Tensor,
    reset_mechanism: ResetMechanism,
    reset_delay: bool,
    spike_on: SpikeOn,
) -> Tensor:
    from lightning_polystep.kernels import lif_spikes  # noqa: PLC0415 - the kernels are made of these equations

    steps, shape = (len(current), current.shape[1:]) if num_steps is None else (num_steps, current.shape)
    rows = current.reshape(1 if num_steps is not None else steps, -1)
    constants = (
        (value.reshape(1) if value.numel() == 1 else value.expand(shape).reshape(-1)).to(current.device)
        for value in (leak, level)
    )
    return lif_spikes(rows, *constants, steps, reset_mechanism, reset_delay, spike_on).reshape(steps, *shape)


def _simulate(
    currents: Sequence[Tensor],
    leak: Tensor,
    level: Tensor,
    fires: Callable[[Tensor], Tensor],
    reset_mechanism: ResetMechanism,
    reset_delay: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    membrane = torch.zeros_like(currents[0])
    owed = fires(membrane - level)
    for current in currents:
        if reset_mechanism == "zero" and reset_delay:
            membrane = (1 - owed) * membrane
        membrane = leak * membrane + current
        spike, membrane, owed = spike_and_reset(membrane, owed, level, fires, reset_mechanism, reset_delay)
        yield spike, membrane
