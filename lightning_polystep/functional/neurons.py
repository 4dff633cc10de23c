"""What all hard leaky integrate-and-fire neurons share: their arguments, checked, and the run over all steps."""

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


class Neurons(NamedTuple):
    """Neurons that are about to run.

    Args:
        currents: Of every step, (N, ...) each.
        leak: Share of the membrane kept per step, in [0, 1]; broadcasts to a current.
        level: Membrane at which a neuron fires; likewise.
        fires: The hard step.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
    """

    currents: Sequence[Tensor]
    leak: Tensor
    level: Tensor
    fires: Callable[[Tensor], Tensor]
    reset_mechanism: ResetMechanism
    reset_delay: bool


def make_neurons(  # noqa: PLR0913
    current: Tensor,
    beta: float | Tensor,
    threshold: float | Tensor,
    num_steps: int | None,
    reset_mechanism: ResetMechanism,
    reset_delay: bool,
    spike_on: SpikeOn,
    on_backward: OnBackward,
    *,
    name: str,
) -> Neurons:
    """Check the arguments of :func:`~lightning_polystep.functional.lif`, which are those of its relatives as well.

    Raises:
        TypeError: If ``current`` is not floating point.
        ValueError: If there is no time step, an option is misspelt, or ``beta`` or ``threshold`` does not broadcast.
    """
    check_lif_options(num_steps, reset_mechanism, name)
    check_step_options(spike_on, on_backward, name)
    currents = _current_per_step(current, num_steps, name)
    return Neurons(
        currents,
        per_neuron("beta", beta, currents[0], name).clamp(0, 1),
        per_neuron("threshold", threshold, currents[0], name),
        partial(heaviside, spike_on=spike_on, on_backward=on_backward, name=name),
        reset_mechanism,
        reset_delay,
    )


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


def per_neuron(role: str, value: float | Tensor, step_current: Tensor, name: str) -> Tensor:
    """Return a constant of the neurons as a tensor that broadcasts to the current of one step.

    Raises:
        ValueError: If it does not broadcast.
    """
    if not isinstance(value, Tensor):
        # Left on the CPU, where a 0-dimensional tensor combines with any device without a copy.
        return torch.tensor(value, dtype=step_current.dtype, device="cpu")
    try:
        value.expand(step_current.shape)
    except RuntimeError:
        raise ValueError(
            f"{name}: {role} of shape {tuple(value.shape)} does not broadcast to "
            f"the current of one step, {tuple(step_current.shape)}."
        ) from None
    return value.to(step_current.dtype)


def run_neurons(
    neurons: Neurons,
    return_membrane: bool,
    *,
    currents: Iterable[Tensor] | None = None,
    feedback: Callable[[Tensor], Tensor] | None = None,
    late_reset_drops_current: bool = True,
) -> Tensor | LIFOutput:
    """Run neurons from rest over all steps.

    Args:
        neurons: The neurons.
        return_membrane: Whether to return the membranes as well.
        currents: What the membranes receive, if not the neurons' currents as they are; as many, one at a time.
        feedback: Maps the spikes of a step to a current of the next.
        late_reset_drops_current: Whether a delayed reset to zero comes after the current of its step; else before.

    Returns:
        Spikes, (T, N, ...); or both.
    """
    steps = _steps(neurons, neurons.currents if currents is None else currents, feedback, late_reset_drops_current)
    count = len(neurons.currents)
    if not return_membrane:
        return _over_time((step[:1] for step in steps), count)[0]
    return LIFOutput(*_over_time(steps, count))


def _steps(
    neurons: Neurons,
    currents: Iterable[Tensor],
    feedback: Callable[[Tensor], Tensor] | None,
    late_reset_drops_current: bool,
) -> Iterator[tuple[Tensor, Tensor]]:
    _, leak, level, fires, reset_mechanism, reset_delay = neurons
    late_reset = reset_mechanism == "zero" and reset_delay
    spike = membrane = torch.zeros_like(neurons.currents[0])
    owed = fires(membrane - level)
    for current in currents:
        if late_reset and not late_reset_drops_current:
            membrane = (1 - owed) * membrane
        membrane = leak * membrane + current
        if feedback is not None:
            membrane = membrane + feedback(spike)
        if late_reset and late_reset_drops_current:
            membrane = (1 - owed) * membrane
        spike, membrane, owed = _spike_and_reset(neurons, membrane, owed)
        yield spike, membrane


def _spike_and_reset(neurons: Neurons, membrane: Tensor, owed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Fire from an integrated membrane and reset it; return spikes, membrane and what is owed to the next step.

    ``owed`` is a reset that the next step still has to make: a delayed one, or, as in snnTorch, a subtraction where
    the immediate one left the membrane at the threshold. A spike at that next step then subtracts nothing more.
    The one departure from snnTorch is an immediate reset to zero with a threshold below 0, where snnTorch doubles
    membranes and this follows the equations.
    """
    _, _, level, fires, reset_mechanism, reset_delay = neurons
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


def _current_per_step(current: Tensor, num_steps: int | None, name: str) -> Sequence[Tensor]:
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
