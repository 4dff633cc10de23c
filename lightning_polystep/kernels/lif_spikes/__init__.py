"""Spikes of LIF neurons at rest, all steps in one pass over memory."""

from typing import Any

import torch
from torch import Tensor

from lightning_polystep.functional.heaviside import check_step_options
from lightning_polystep.functional.neurons import check_lif_options
from lightning_polystep.kernels.dispatch import Kernel
from lightning_polystep.kernels.readout.reference import check_tensor
from lightning_polystep.tape.flow import Flow, Site, flows, opaque

_KERNEL = Kernel("lif_spikes")


@torch.library.custom_op("polystep::lif_spikes", mutates_args=())
def lif_spikes(
    current: Tensor,
    beta: Tensor,
    threshold: Tensor,
    num_steps: int,
    reset_mechanism: str = "zero",
    reset_delay: bool = False,
    spike_on: str = "ge",
) -> Tensor:
    """Return the spikes of LIF neurons: what :func:`~lightning_polystep.functional.lif` returns, to the last bit.

    The equations are written there. Step by step in torch each of their operations reads and writes all neurons once;
    here a neuron's membrane stays in a register over all steps.

    Args:
        current: (T, M), float32 or float64; or (1, M), one that is constant over ``num_steps`` steps. Finite.
        beta: Share of the membrane kept per step, (M,) or (1,) for all, in the dtype of ``current``.
        threshold: Membrane at which a neuron fires, likewise.
        num_steps: T.
        reset_mechanism: What a spike does to the membrane.
        reset_delay: Whether it does so one step later.
        spike_on: Whether a membrane exactly at the threshold fires.

    Returns:
        Zeros and ones, (T, M), in the dtype of ``current``.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape or an option is wrong.

    Example:
        >>> import torch
        >>> lif_spikes(torch.tensor([[0.25, 0.5]]), torch.ones(1), torch.ones(1), num_steps=5).T
        tensor([[0., 0., 0., 1., 0.],
                [0., 1., 0., 1., 0.]])
    """
    name = "lif_spikes"
    check_lif_options(num_steps, reset_mechanism, name)
    check_step_options(spike_on, "zero", name)
    if current.ndim != 2 or len(current) not in {1, num_steps}:
        raise ValueError(f"{name}: current must be ({num_steps} or 1, M), got {tuple(current.shape)}.")
    if current.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"{name}: current must be float32 or float64, got {current.dtype}.")
    for role, value in (("beta", beta), ("threshold", threshold)):
        size = 1 if len(value) == 1 else current.shape[1]
        check_tensor(value, (size,), current.dtype, f"{name}: {role}")
    return _KERNEL(current, beta, threshold, num_steps, reset_mechanism, reset_delay, spike_on)


@lif_spikes.register_fake
def _fake(current: Tensor, beta: Tensor, threshold: Tensor, num_steps: int, *_: object, **__: object) -> Tensor:
    del beta, threshold
    return current.new_empty(num_steps, current.shape[1])


@lif_spikes.register_vmap
def _vmap(info: Any, batched: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
    """Run all candidates as more neurons."""
    tensors, options = arguments[:3], arguments[3:]  # of which torch leaves out those that have their default
    wide = [
        value.unsqueeze(-2) if where is None else value.movedim(where, -2)
        for value, where in zip(tensors, batched, strict=False)
    ]
    width = wide[0].shape[-1]
    many = (value.expand(*value.shape[:-2], info.batch_size, width).flatten(-2) for value in wide)
    spikes = lif_spikes(*many, *options)
    return spikes.unflatten(1, (info.batch_size, width)), 1


@flows(torch.ops.polystep.lif_spikes)
def _flow(site: Site) -> Flow:
    """Say that each neuron goes by its own current, at all steps, and by its own constants."""
    (time, neurons), *constants = site.operands
    if not all(site.labels.unify(neurons, own) for (own,) in constants if own):
        return opaque(site)
    mixed = site.nothing()
    mixed[0] = frozenset({0} if time else ())
    return Flow(((site.labels.fresh(site.shapes[0][0]), neurons),), tuple(mixed))
