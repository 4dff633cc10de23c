"""Score many candidates in one batched forward, by ``torch.func.vmap``.

Two ways of placing a candidate into the module:

* :class:`ShiftTier` adds the candidate's change of one pre-activation to the site's output by a hook. The weights stay
  shared, so everything before the site is computed once for the whole batch of candidates.
* :class:`ParameterTier` gives every candidate parameters of its own: for parameters that are no site, shared weights
  and layers that compute their output themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn import functional

from lightning_polystep.particles import Block, Proposal
from lightning_polystep.scoring.probe import Probe, as_scalar

_PREFIX = "module."


class _Adapter(nn.Module):
    """Holds the user's module so that ``functional_call`` can swap its tensors around any function of it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.training = module.training

    def forward(self, evaluate: Callable[[], Tensor]) -> Tensor:
        return as_scalar(evaluate())


def _swapped(probe: Probe, tensors: dict[str, Tensor]) -> Tensor:
    places = _places(probe.module)
    named = {_PREFIX + place: tensor for name, tensor in tensors.items() for place in places[name]}
    with probe.vectorised():
        # Not by functional_call's own tying: it would swap a place twice that a shared module has under two names, and
        # so put the candidates' tensor back instead of the parameter.
        return functional_call(_Adapter(probe.module), named, (probe.evaluate,), tie_weights=False)


def _places(module: nn.Module) -> dict[str, list[str]]:
    """Return, for the first name of each parameter and buffer, one name for each place that holds it."""
    names: dict[int, list[str]] = {}
    for prefix, part in module.named_modules():
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]:
            if tensor is not None:
                names.setdefault(id(tensor), []).append(f"{prefix}.{name}" if prefix else name)
    return {places[0]: places for places in names.values()}


def _own_buffers(probe: Probe, candidates: int) -> dict[str, Tensor]:
    """A copy of each written buffer per candidate: vmap refuses to write batched values into a shared one."""
    return {
        name: buffer.expand(candidates, *buffer.shape).clone()
        for name, buffer in probe.module.named_buffers()
        if name in probe.written_buffers
    }


class ShiftTier:
    r"""Candidates as shifts of one pre-activation: :math:`a_{nj} \mathrel{+}= \rho\, x_n \cdot B R v`."""

    name: ClassVar[str] = "vmap (shift)"
    default_candidates: ClassVar[int | None] = 2048

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        block = proposal.block
        site = block.site
        if site is None:
            msg = f"{block.name} is not a site: its candidates are not shifts of a pre-activation."
            raise ValueError(msg)

        def candidate_loss(row: Tensor, displacement: Tensor, buffers: dict[str, Tensor]) -> Tensor:
            def add_shift(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
                return output + _shift(block, module, args[0], row, displacement)

            handle = site.register_forward_hook(add_shift)
            try:
                return _swapped(probe, buffers)
            finally:
                handle.remove()

        rows, displacements = proposal.displacements(start, stop)
        buffers = _own_buffers(probe, stop - start)
        batched = vmap(candidate_loss, randomness="same")
        return probe.run(lambda: batched(rows, displacements, buffers))


def _shift(block: Block, site: nn.Module, inputs: Tensor, row: Tensor, displacement: Tensor) -> Tensor:
    """The change of the site's output, zero but for one unit (last axis of Linear, channel axis of Conv2d)."""
    weight, bias = (displacement[:-1], displacement[-1:]) if block.has_bias else (displacement, None)
    chosen = (torch.arange(block.rows, device=row.device) == row).to(inputs.dtype)
    if isinstance(site, nn.Conv2d):
        kernel = weight.reshape(1, site.in_channels, *site.kernel_size)
        return site._conv_forward(inputs, kernel, bias) * chosen[:, None, None]
    return functional.linear(inputs, weight[None], bias) * chosen


class ParameterTier:
    """Candidates as whole parameters, batched: memory grows with the parameters, speed is that of batched weights."""

    name: ClassVar[str] = "vmap (parameters)"
    default_candidates: ClassVar[int | None] = 2048

    def score(self, proposal: Proposal, probe: Probe, start: int, stop: int) -> Tensor:
        """Return the losses of the candidates [start, stop), shape (stop - start,), float64."""
        block = proposal.block
        incumbent = block.join([parameter.detach() for parameter in block.parameters])
        row_index = torch.arange(block.rows, device=incumbent.device)[:, None]

        def candidate_loss(row: Tensor, displacement: Tensor, buffers: dict[str, Tensor]) -> Tensor:
            candidate = torch.where(row_index == row, incumbent + displacement, incumbent)
            parameters = dict(zip(block.parameter_names, block.split(candidate), strict=True))
            return _swapped(probe, {**buffers, **parameters})

        rows, displacements = proposal.displacements(start, stop)
        buffers = _own_buffers(probe, stop - start)
        batched: Any = vmap(candidate_loss, randomness="same")
        return probe.run(lambda: batched(rows, displacements, buffers))
