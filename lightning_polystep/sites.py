"""Observe: which rows of which module are particles, and what their inputs look like."""

from __future__ import annotations

from collections import ChainMap
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

from lightning_polystep.constants import constant_of
from lightning_polystep.input_units import brought_together, changed, is_far_off, pulled_in, spreads_of
from lightning_polystep.joining import joined
from lightning_polystep.layers.quantised import QuantisedWeight
from lightning_polystep.lookups import asked_for, lookups_of
from lightning_polystep.particles import Block, InputStatistics
from lightning_polystep.tape import Tape, factors_of, unrecorded

# A moment needs no more samples than this to be accurate; convolutions have one per image position.
_MOST_SAMPLES = 8_192
# The running average forgets batches older than about this many: hidden layers' inputs drift while training.
_MOMENT_WINDOW = 20
_FULL_SPACE_DIM = 2
# Directions in which a vector of constants of neurons is probed.
_CONSTANTS_RANK = 4

# Why random directions take the place of the span of a layer's inputs.
_UNSPANNED = "not a Linear or Conv2d weight: no inputs to span"
_UNSEEN = "its inputs were not seen: the module is not called as a layer of floats"
_UNREACHED = "its inputs were not seen: nothing reached it in the first batch, as an expert without a sample"


def find_blocks(module: nn.Module, param_groups: list[dict[str, Any]]) -> list[Block]:
    """Cut every unfrozen parameter of the groups into blocks of particles; none is left out.

    Weights (with their biases) of ``nn.Linear`` and ungrouped ``nn.Conv2d`` become sites; every other parameter (leaks,
    thresholds, norm scales, embeddings, recurrent weights) becomes a block of its own. In the subspace "joint" these
    become one block per group, but for tables and constants of neurons.

    Args:
        module: The module that holds the parameters.
        param_groups: The optimizer's groups.

    Returns:
        The blocks, in the order in which the module names them.
    """
    group_of = {parameter: group for group in param_groups for parameter in group["params"]}
    # A second name for the same module is no second place.
    modules = dict(module.named_modules())
    owners: dict[nn.Parameter, list[str]] = {}
    for prefix, part in modules.items():
        for attribute, parameter in part.named_parameters(recurse=False, remove_duplicate=False):
            owners.setdefault(parameter, []).append(f"{prefix}.{attribute}" if prefix else attribute)
    blocks: list[Block] = []
    taken: set[nn.Parameter] = set()
    for parameter, names in owners.items():
        if parameter in taken or parameter not in group_of or not parameter.requires_grad or not parameter.numel():
            continue  # an empty one has nothing to probe
        owner_name, _, attribute = names[0].rpartition(".")
        owner = modules[owner_name]
        group = group_of[parameter]
        site = _site_block(owner_name, owner, group, group_of, owners) if attribute == "weight" else None
        block = site or _free_block(names[0], owner, attribute, parameter, group)
        places = [name.rpartition(".") for name in names]
        block.lookups, block.padding = lookups_of([(modules[prefix], last) for prefix, _, last in places])
        taken.update(block.parameters)
        blocks.append(block)
    return joined(blocks)


def _site_block(
    name: str,
    owner: nn.Module,
    group: dict[str, Any],
    group_of: dict[nn.Parameter, dict[str, Any]],
    owners: dict[nn.Parameter, list[str]],
) -> Block | None:
    if group["subspace"] == "full" or not isinstance(owner, nn.Linear | nn.Conv2d):
        return None
    if isinstance(owner, nn.Conv2d) and owner.groups != 1:
        return None
    weight, bias = cast("nn.Parameter", owner.weight), cast("nn.Parameter | None", owner.bias)
    shared = len(owners[weight]) > 1
    bias_moves_along = bias is not None and bias.requires_grad and group_of.get(bias) is group
    parameters: tuple[nn.Parameter, ...] = (weight,)
    if bias is not None and bias_moves_along and not shared and len(owners[bias]) == 1:
        parameters = (weight, bias)
    own_forward = type(owner).forward not in {nn.Linear.forward, nn.Conv2d.forward}
    remark = "weight shared between modules" if shared else "module computes its output itself" if own_forward else ""
    subspace = group["subspace"]
    if subspace == "flips" and not is_binary(owner):
        subspace, remark = "inputs", "its weights are not binary, so there is nothing to flip"
    rows = weight.shape[0]
    return Block(
        name=name,
        parameters=parameters,
        parameter_names=tuple(owners[parameter][0] for parameter in parameters),
        group=group,
        rows=rows,
        dim=sum(parameter.numel() for parameter in parameters) // rows,
        subspace=subspace,
        site=owner,
        shiftable=not (shared or own_forward),
        shared=shared,
        remark=remark,
    )


def is_binary(module: nn.Module) -> bool:
    """Tell whether the weights of a module act by their signs alone."""
    return isinstance(module, QuantisedWeight) and module.weight_format == "binary"


def _free_block(name: str, owner: nn.Module, attribute: str, parameter: nn.Parameter, group: dict[str, Any]) -> Block:
    constant = constant_of(owner, attribute, parameter)
    is_table = isinstance(owner, nn.Embedding | nn.EmbeddingBag)
    remark = _UNSPANNED if group["subspace"] in {"inputs", "flips"} else ""
    # A module may say itself how one of its own parameters is to be searched.
    chosen = getattr(owner, "own_subspaces", {}).get(attribute)
    if group["subspace"] == "full" and chosen is None:
        # A particle is in one row of a table: rows are read, or are padding.
        divided = parameter[0].numel() if is_table else parameter.numel()
        dim = _largest_divisor(divided, group["particle_dim"] or _FULL_SPACE_DIM)
        rows, subspace = parameter.numel() // dim, "full"
    elif chosen is not None:
        rows, dim, subspace = parameter.shape[0], parameter[0].numel(), chosen
    elif constant is not None:
        # One particle: each by itself would take a step of its own whether it matters or not, and of all candidates of
        # a small network more than its weights.
        rows, dim, subspace = 1, parameter.numel(), "full"
    elif parameter.dim() <= 1:
        rows, dim, subspace = parameter.numel(), 1, "full"
    else:
        rows, dim, subspace = parameter.shape[0], parameter.numel() // parameter.shape[0], "gaussian"
    if subspace == "gaussian" or group["subspace"] == "joint":
        subspace, remark = _subspace_of(parameter, group["subspace"], subspace, constant is not None, is_table)
    remark = "as its module asks" if chosen is not None else remark
    if isinstance(owner, torch.jit.ScriptModule):
        remark = "compiled by torch.jit, which hides its layers' inputs: compile after training"
    block = Block(name, (parameter,), (name,), group, rows, dim, subspace, remark=remark)
    if constant is not None:
        block.scale, block.constant, block.bounds = constant.scale, True, (constant.low, constant.high)
        if group["rank"] is None and group["subspace"] != "full":
            # On top of the budget that blocks share: a vector of constants is no reason to probe weights less.
            block.group = cast("dict[str, Any]", ChainMap({"rank": _CONSTANTS_RANK}, group))
    return block


def _subspace_of(
    parameter: nn.Parameter, wanted: str, subspace: str, is_constant: bool, is_table: bool
) -> tuple[str, str]:
    """Return the subspace of a parameter that no layer multiplies as a site does, and what the plan says of it."""
    if wanted == "joint":
        if is_constant or is_table:
            apart = "a table" if is_table else "a constant has a scale of its own"
            return subspace, f"apart from the joint particle: {apart}"
        return "joint", ""
    if wanted not in {"inputs", "flips"}:
        return subspace, ""
    if parameter.dim() == 2 and not is_table:
        return "inputs", ""  # the tape may show what its rows are multiplied with
    return subspace, _UNSPANNED


def _largest_divisor(number: int, at_most: int) -> int:
    return next(divisor for divisor in range(min(at_most, number), 0, -1) if number % divisor == 0)


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
    """

    calls: dict[str, int] = field(default_factory=dict)
    _asked: dict[str, list[Tensor | None]] = field(default_factory=dict)
    _sums: dict[str, Tensor] = field(default_factory=dict)
    _samples: dict[str, int] = field(default_factory=dict)
    _dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    _spreads: dict[str, Tensor] = field(default_factory=dict)
    _latest: dict[str, _Seen] = field(default_factory=dict)
    _has_read: bool = False

    def settle(self, blocks: list[Block], statistics: dict[str, InputStatistics]) -> None:
        """Give sites of which no inputs are known random directions, and say why."""
        for block in blocks:
            if block.subspace == "inputs" and block.name not in statistics:
                block.subspace = "gaussian"
                called = _UNSEEN if self.calls.get(block.name) else _UNREACHED
                block.remark = called if block.site is not None else _UNSPANNED

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
        for parameter, inputs in factors_of(tape, list(missed)):
            self._add(missed[parameter], inputs, inputs.detach)

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
        for sums, each in (
            (self._sums, latest.calls * latest.product.double()),
            (self._spreads, samples * latest.spreads),
        ):
            known = sums.get(name)
            sums[name] = each if known is None else known.add_(each)
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
        @looking_on
        def hook(site: nn.Module, args: tuple[Any, ...]) -> None:
            seen.calls[block.name] = seen.calls.get(block.name, 0) + 1
            wanted = measured is None or block.name in measured
            inputs = _values(args[0]) if args else None
            if wanted and block.learns_inputs and inputs is not None and _fits(site, inputs):
                seen.record(block, site, inputs)

        return hook

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


def _values(seen: Any) -> Tensor | None:
    """Return a tensor, or the real numbers that a quantised tensor of Brevitas (a tuple) stands for; else None."""
    values = getattr(seen, "value", None) if isinstance(seen, tuple) else seen
    return values if isinstance(values, Tensor) else None


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
    inputs = inputs[:: max(1, len(inputs) * positions // _MOST_SAMPLES)]
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
