"""Observe: what the inputs of particles look like."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, ParamSpec, cast

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn import functional

from lightning_polystep.blocks import UNSPANNED
from lightning_polystep.input_units import brought_together, changed, is_far_off, pulled_in, spreads_of
from lightning_polystep.lookups import asked_for
from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.tape import Tape, factors_of, unrecorded

# A moment needs no more samples than this to be accurate. Convolutions have one per position: those of an image are
# alike, and spiking ones have as many again at each step of time.
_MOST_SAMPLES, _MOST_POSITIONS = 8_192, 2_048
# The running average forgets batches older than about this many: hidden layers' inputs drift while training.
_MOMENT_WINDOW = 20

# Why random directions take the place of the span of a layer's inputs.
_UNSEEN = "its inputs were not seen: the module is not called as a layer of floats"
_UNREACHED = (
    "its inputs were not seen: nothing reached it in the first batch, as an expert without a sample, or it runs inside "
    "torch.func"
)


_recording: ContextVar[bool] = ContextVar("recording", default=True)


@contextmanager
def not_recording() -> Iterator[None]:
    """Keep every observation as it is while the body runs the module: probes are not data."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


def is_recording() -> bool:
    """Tell whether the module runs for real, and not for a probe."""
    return _recording.get()


Hook = ParamSpec("Hook")


def looking_on(hook: Callable[Hook, None]) -> Callable[Hook, None]:
    """Have a hook of a layer see the step only, and no probe; what it computes itself is on no tape.

    Args:
        hook: Of torch; it returns nothing, so that it changes nothing.
    """

    @wraps(hook)
    def look(*args: Hook.args, **named: Hook.kwargs) -> None:
        if is_recording():
            with unrecorded():
                hook(*args, **named)

    return look


@dataclass
class _Seen:
    """What a site was called with, perhaps several times.

    Args:
        inputs: The inputs, which stay alive so that no others take their memory.
        version: How often they had been written.
        product: X^T X.
        spreads: Of the inputs.
        rows: How many rows X has.
        calls: How often they were given.
    """

    inputs: Tensor
    version: int
    product: Tensor
    spreads: Tensor
    rows: int
    calls: int = 1

    def are(self, inputs: Tensor) -> bool:
        """Tell whether a tensor shows the same memory, unwritten since."""
        mine = self.inputs
        if any(each.is_inference() or is_functorch_wrapped_tensor(each) for each in (inputs, mine)):
            return False  # these do not tell whether they have been written, or where they are
        if inputs._version != self.version:
            return False
        return inputs is mine or (
            inputs.data_ptr() == mine.data_ptr()
            and inputs.shape == mine.shape
            and inputs.stride() == mine.stride()
            and inputs.dtype == mine.dtype
        )


@dataclass
class Observation:
    """What a commit pass has shown so far.

    Args:
        calls: How often each site ran, by block name.
        hidden: Blocks whose inputs come out of layers that are trained. Where no tape tells, those that were not the
            first to be called.
    """

    calls: dict[str, int] = field(default_factory=dict)
    _asked: dict[str, list[Tensor | None]] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _samples: dict[str, int] = field(default_factory=dict)
    _dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _spreads: dict[str, Tensor] = field(default_factory=dict)
    _latest: dict[str, _Seen] = field(default_factory=dict)
    _has_read: bool = False
    hidden: set[str] = field(default_factory=set)

    def settle(self, blocks: list[Block], statistics: dict[str, InputStatistics]) -> None:
        """Give sites of which no inputs are known random directions, and say why."""
        for block in blocks:
            if block.subspace == "inputs" and block.name not in statistics:
                block.subspace = "gaussian"
                called = _UNSEEN if self.calls.get(block.name) else _UNREACHED
                block.remark = called if block.site is not None else UNSPANNED

    def ask(self, block: Block, rows: Tensor | None) -> None:
        """Take note which rows of a table a call asks for; None when that cannot be told."""
        self._asked.setdefault(block.name, []).append(rows)

    def asked(self, block: Block) -> Tensor | None:
        """Return the rows of a table that were asked for, ascending; None when that is not known."""
        asked = [rows for rows in self._asked.get(block.name, []) if rows is not None]
        if not block.lookups or len(asked) < len(self._asked.get(block.name, [])):
            return None
        return torch.cat(asked).unique() if asked else torch.zeros(0, dtype=torch.int64)

    def record(self, block: Block, site: nn.Module, inputs: Tensor) -> None:
        """Add a site's inputs to its second moment."""
        self._add(block, inputs, lambda: input_rows(site, inputs.detach(), with_bias=False))

    def read(self, tape: Tape, blocks: Iterable[Block]) -> None:
        """Add, once, what the tape shows as inputs of blocks that no module called on their behalf.

        Args:
            tape: Of the pass.
            blocks: Those whose inputs are wanted.
        """
        if self._has_read:
            return
        self._has_read = True
        missed = {
            block.parameters[0]: block for block in blocks if block.learns_inputs and not self.calls.get(block.name)
        }
        for product in factors_of(tape, list(missed)):
            self._add(missed[product.parameter], product.inputs, product.rows)

    def tell_hidden(self, tape: Tape, parameters: Iterable[Tensor]) -> None:
        """Tell, of the inputs of this pass, which depend on parameters.

        Args:
            tape: Of the pass.
            parameters: Those that are trained.
        """
        places = {name: tape.find(seen.inputs) for name, seen in self._latest.items()}
        if not places:
            return
        made = {tape.leaves[id(each)] for each in parameters if id(each) in tape.leaves}
        for operation in tape.operations:
            if not made.isdisjoint(operation.operands):
                made.update(each for each in operation.outputs if each is not None)
        for name, place in places.items():
            if place is not None:
                (self.hidden.add if place in made else self.hidden.discard)(name)

    def _add(self, block: Block, inputs: Tensor, rows_of: Callable[[], Tensor]) -> None:
        latest = self._latest.get(block.name)
        if latest is not None and latest.are(inputs):  # as at every time step where the input is a constant current
            latest.calls += 1
            return
        self._add_latest(block.name)
        rows = pulled_in(rows_of())
        spreads = spreads_of(rows)
        self._dtypes[block.name] = rows.dtype
        # A float32 product summed over batches in float64: exact enough for a basis, and several times as fast.
        rows = rows.double() if is_far_off(rows, spreads) else rows
        if block.has_bias:
            rows = torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1)
        self._latest[block.name] = _Seen(
            inputs, 0 if inputs.is_inference() else inputs._version, rows.T @ rows, spreads, len(rows)
        )

    def _add_latest(self, name: str) -> None:
        """Add what a site has been called with, as often as it has, to what it was called with before."""
        latest = self._latest.pop(name, None)
        if latest is None:
            return
        samples = latest.calls * latest.rows
        for sums, each, times in (
            (self._sums, latest.product, latest.calls),
            (self._spreads, latest.spreads, samples),
        ):
            known = sums.get(name)
            sums[name] = times * each.double() if known is None else known.add_(each, alpha=times)
        self._samples[name] = self._samples.get(name, 0) + samples

    def take_moments(self) -> dict[str, Tensor]:
        """Return the finite second moments G = X^T X / N recorded since the last call.

        Returns:
            Shape (D, D), exactly symmetric, in the dtype of the inputs, float32 at least: what one process tells
            another of them, a triangle in that dtype, is then all there is to know.
        """
        return {name: moment for name, (moment, _) in self.take_inputs().items()}

    def take_inputs(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what :meth:`take_moments` does, each with the spreads of the inputs, (2, inputs), float64."""
        for name in list(self._latest):
            self._add_latest(name)
        taken = {
            name: (
                symmetric((total / self._samples[name]).to(self._dtypes[name])),
                self._spreads[name] / self._samples[name],
            )
            for name, total in self._sums.items()
        }
        self._sums, self._samples, self._spreads = {}, {}, {}
        # A batch with a non-finite activation would poison the running average for good.
        return {name: each for name, each in taken.items() if bool(torch.isfinite(each[0]).all())}


def symmetric(square: Tensor) -> Tensor:
    """Return a matrix whose upper triangle is that of the lower: a product X^T X is symmetric to rounding only.

    Args:
        square: Shape (D, D).

    Example:
        >>> symmetric(torch.tensor([[1.0, 9.0], [2.0, 3.0]]))
        tensor([[1., 2.],
                [2., 3.]])
    """
    return (square.tril(-1).T + square.tril()).contiguous()


@contextmanager
def observing(module: nn.Module, blocks: list[Block], measured: set[str] | None = None) -> Iterator[Observation]:
    """Record the inputs of every site while the body runs the module once.

    Args:
        module: The module.
        blocks: Its blocks; only sites are recorded.
        measured: Names of the blocks whose inputs' second moment is wanted; all by default.

    Yields:
        The observation, which grows while the body runs.
    """
    seen = Observation()

    def on_input(block: Block) -> Callable[..., None]:
        return _on_input(seen, block, wanted=block.learns_inputs and (measured is None or block.name in measured))

    def on_lookup(block: Block) -> Callable[..., None]:
        @looking_on
        def hook(_table: nn.Module, args: tuple[Any, ...], named: dict[str, Any]) -> None:
            seen.ask(block, asked_for(args, named))

        return hook

    handles = [b.site.register_forward_pre_hook(on_input(b)) for b in blocks if b.site is not None]
    handles += [
        table.register_forward_pre_hook(on_lookup(block), with_kwargs=True)
        for block in blocks
        for table in block.lookups
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def _is_wrapped(inputs: Any) -> bool:
    """Tell whether something is a tensor inside of torch.func.vmap or grad."""
    if torch.compiler.is_dynamo_compiling():  # it traces hooks, and does not know the question
        return False
    return isinstance(inputs, Tensor) and is_functorch_wrapped_tensor(inputs)


def _values(seen: Any) -> Tensor | None:
    """Return a tensor, or the real numbers that a quantised tensor of Brevitas (a tuple) stands for; else None."""
    values = getattr(seen, "value", None) if isinstance(seen, tuple) else seen
    return values if isinstance(values, Tensor) else None


def _on_input(seen: Observation, block: Block, *, wanted: bool) -> Callable[..., None]:
    """Return a hook of a site that counts its calls, and takes in what it is given where that is wanted."""

    @looking_on
    def record(site: nn.Module, inputs: Any) -> None:
        inputs = _values(inputs)
        if inputs is not None and _fits(site, inputs):
            seen.record(block, site, inputs)

    def hook(site: nn.Module, args: tuple[Any, ...]) -> None:
        if not is_recording() or (args and _is_wrapped(args[0])):
            return  # nothing can be asked of the values of a wrapped tensor; the tape shows them
        if seen.calls and block.name not in seen.calls:
            seen.hidden.add(block.name)
        seen.calls[block.name] = seen.calls.get(block.name, 0) + 1
        if wanted and args:
            record(site, args[0])

    return hook


def _fits(site: nn.Module, inputs: Tensor) -> bool:
    """Tell whether a site takes inputs as its class of torch does; a forward of its own may have other axes in mind."""
    if isinstance(site, nn.Conv2d):
        return inputs.dim() >= 3 and inputs.shape[-3] == site.in_channels
    return inputs.dim() >= 1 and inputs.shape[-1] == cast("nn.Linear", site).in_features


def input_rows(site: nn.Module, inputs: Tensor, *, with_bias: bool) -> Tensor:
    """Return a site's inputs as rows x that its units multiply, the constant 1 last when it has a bias.

    Args:
        site: ``nn.Linear`` with inputs (..., in_features), or ``nn.Conv2d`` with inputs (..., C, H, W): axes of
            time and batch before the channels count as one.
        inputs: Its input.
        with_bias: Append the constant 1.

    Returns:
        X, shape (samples, D), at least float32; one row per position for a convolution. At most about 8,192 rows,
        evenly spaced over the batch.
    """
    inputs = inputs if inputs.dtype in {torch.float32, torch.float64} else inputs.float()
    if isinstance(site, nn.Conv2d):
        rows = _patches(site, inputs)
    else:
        rows = inputs.reshape(-1, inputs.shape[-1])
        rows = rows[:: max(1, len(rows) // _MOST_SAMPLES)]
    return torch.cat([rows, rows.new_ones(len(rows), 1)], dim=1) if with_bias else rows


def _patches(site: nn.Conv2d, inputs: Tensor) -> Tensor:
    inputs = inputs.reshape(-1, *inputs.shape[-3:])
    positions = inputs.shape[-1] * inputs.shape[-2]
    inputs = inputs[:: max(1, len(inputs) * positions // _MOST_POSITIONS)]
    mode = "constant" if site.padding_mode == "zeros" else site.padding_mode
    padded = functional.pad(inputs, site._reversed_padding_repeated_twice, mode=mode)
    columns = functional.unfold(padded, site.kernel_size, dilation=site.dilation, stride=site.stride)
    return columns.transpose(1, 2).reshape(-1, columns.shape[1])


def update_statistics(known: InputStatistics | None, moment: Tensor, spreads: Tensor | None = None) -> InputStatistics:
    """Fold a batch's second moment into the running average.

    The average is exact over the first 20 batches and exponential with that window from then on. A batch of inputs ten
    times as large or as small as those before is left out; if the next one is so too, it is the past that was unlike
    the rest, and the average starts anew.

    Args:
        known: The running statistics, or None before the first batch.
        moment: The batch's second moment, shape (D, D); the average is kept in float64.
        spreads: Of the inputs (:mod:`~lightning_polystep.input_units`), shape (2, D); unknown by default.
    """
    moment = moment.double()
    fresh = InputStatistics(moment, batches=1, basis=moment.new_empty(len(moment), 0), basis_moment=moment[:0])
    fresh.spreads = moment.new_zeros(2, 0) if spreads is None else spreads.double()
    if known is None or known.moment.shape != moment.shape:  # a bias that is frozen or unfrozen changes D
        return fresh
    if known.spreads.shape != fresh.spreads.shape:
        known.spreads = torch.zeros_like(fresh.spreads)
    if changed(known.spreads, fresh.spreads):
        known.doubted += 1
        return fresh if known.doubted > 1 else known
    known.doubted = 0
    known.batches += 1
    share = 1.0 / min(known.batches, _MOMENT_WINDOW)
    if known.spreads.numel():
        past, now = brought_together(known.spreads[0], fresh.spreads[0])
        powers = past.new_tensor([[1.0], [2.0]])
        known.spreads = torch.lerp(known.spreads * past**powers, fresh.spreads * now**powers, share)
        if bool((past != 1).any()) or bool((now != 1).any()):
            known.moment, moment = known.moment * torch.outer(past, past), moment * torch.outer(now, now)
    known.moment = torch.lerp(known.moment, moment, share)
    if len(known.basis_moment):
        known.drift = _drift(known)
        known.held += 1
    return known


def _drift(known: InputStatistics) -> float:
    """Return how far the moment has moved since the basis was taken; inputs of several kinds each in its own size."""
    then, now = known.basis_moment, known.moment
    if known.mixed:
        rates = 1 / torch.where(now.diagonal() > 0, now.diagonal(), 1.0).sqrt()
        then, now = (each * torch.outer(rates, rates) for each in (then, now))
    # A layer that was silent gets an infinite drift as soon as it speaks, and before that 0 / 0.
    return float((now - then).norm() / then.norm())
