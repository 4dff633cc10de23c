"""Tiny arguments for every Triton kernel, compared with the references; as a process, in Triton's interpreter.

Triton reads TRITON_INTERPRET once, when it is imported. Started with it, this file compares all cases and prints how
the kernels were launched, as JSON; ``triton_compiler.py`` then compiles them for a GPU that need not be there.
"""

import inspect
import itertools
import json
import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any, NamedTuple
from unittest import mock

import torch
from torch import Tensor

from tests.kernels import cases, feedforward_cases, route_cases, two_level_cases
from tests.kernels.cases import NEURONS, Sizes, readout_case, run, train_case

LIF = ("lif_outcome_costs", "lif_direct_costs", "lif_train_costs")
FEEDFORWARD = ("step_outcome_costs", "score_direct_costs", "relu_direct_costs", "unit_change_losses")
# What makes candidates take turns, and as small as it can be: the folder that says so, and its names. By operator.
TURNS = {
    "lif_train_costs": ("lif_train_costs", ("_WORDS", "_SPIKES")),
    "relu_direct_costs": ("relu_direct_costs", ("_ENTRIES",)),
    "relu_grid_costs": ("relu_grid_costs", ("_ENTRIES",)),
    "unit_change_losses": ("feedforward", ("_ENTRIES",)),
}


class Case(NamedTuple):
    """What to run, and whether nothing in it rounds."""

    name: str
    arguments: tuple[Any, ...]
    exact: bool = False


def all_cases() -> Iterator[Case]:
    """Return what to run, in a fixed order, from a fixed seed."""
    torch.manual_seed(0)
    yield from _spiking()
    yield from _trains()
    yield from _feedforward()
    for dtype, own in itertools.product((torch.float32, torch.float64), (False, True)):
        for sizes in ((5, 4, 3, 6), (67, 2, 1, 130), (1, 1, 2, 1), (3, 4, 0, 2), (3, 4, 2, 0)):
            yield Case("route_outcome_costs", route_cases.case(*sizes, dtype=dtype, own=own), exact=True)
    for sizes, whole in itertools.product(((1, 1, 1, 1), (3, 300, 5, 2), (2, 7, 0, 1), (2, 0, 3, 1)), (False, True)):
        yield Case("two_level_losses", two_level_cases.case(*sizes, whole=whole), exact=True)


def _spiking() -> Iterator[Case]:
    shapes = (Sizes(3, 4, 3, 5, 2, (3,)), Sizes(1, 1, 1, 1, 1))
    for name, loss, neuron, sizes in itertools.product(LIF, cases.LOSSES, NEURONS[::5], shapes):
        yield Case(name, cases.case(name, sizes, loss, neuron, torch.float32))
    for neuron, steps in itertools.product(NEURONS, (1, 6)):
        yield Case("lif_spikes", (torch.randn(steps, 300), torch.rand(1), torch.rand(300), 6, *neuron), exact=True)


def _trains() -> Iterator[Case]:
    """All resets, of hidden layers beside another of the readout; and sizes beside those of a block or a word."""
    shapes = itertools.cycle((Sizes(2, 5, 3, 5, 2), Sizes(3, 4, 2, 6, 2, (3,)), Sizes(2, 5, 3, 5, 3, (3, 4))))
    beside = (
        Sizes(2, 70, 2, 4, 1, (2,)),  # more steps than a word has bits
        Sizes(1, 3, 3, 130, 1),  # candidates
        Sizes(17, 2, 2, 3, 2),  # samples
        Sizes(2, 4, 2, 8, 2, (35, 2)),  # neurons
        Sizes(2, 4, 70, 6, 2),  # classes
        Sizes(2, 3, 2, 0, 2),
        Sizes(2, 3, 2, 2, 0),
    )
    for index, (hidden, readout) in enumerate(zip(NEURONS, NEURONS[5:] + NEURONS[:5], strict=True)):
        for sizes, dtype in ((next(shapes), torch.float32), (beside[index % len(beside)], torch.float64)):
            loss, dyadic, constant = cases.LOSSES[(index + index // 3) % 3], index % 2 == 0, index % 4 < 2
            tail = readout_case(sizes, loss, readout, dtype, dyadic=dyadic, dense=constant)
            yield Case("lif_train_costs", train_case(sizes, hidden, dtype, tail, dyadic=dyadic, constant=constant))


def _feedforward() -> Iterator[Case]:
    sizes_of, floors = feedforward_cases.Sizes, itertools.cycle((0.0, 0.0, -math.inf))
    shapes = (sizes_of(3, 3, 5, 2, (3, 4), steps=2), sizes_of(2, 3, 4, 2, steps=1), sizes_of(1, 1, 1, 1, (1,), steps=0))
    beside = (
        sizes_of(3, 4, 5, 2, (3, 4), relu=(True, False)),
        sizes_of(67, 3, 2, 2, (3,)),  # more samples than a program takes
        sizes_of(2, 3, 130, 1, (35,)),  # candidates, and units
    )
    for name in FEEDFORWARD:
        for loss, sizes, own in itertools.product(feedforward_cases.LOSSES, shapes, (False, True)):
            options = {"dense": own, "own_shifts": own, "own_tables": own}
            arguments = feedforward_cases.case(name, sizes, loss, torch.float32, **options)
            yield Case(name, (*arguments, next(floors)) if name == "relu_direct_costs" else arguments)
        for sizes, dtype in itertools.product(beside, feedforward_cases.DTYPES):
            yield Case(name, feedforward_cases.case(name, sizes, "mse", dtype, dyadic=True), exact=sizes.classes == 4)
    for loss, sizes, own in itertools.product(feedforward_cases.LOSSES, (*shapes, *beside), (False, True)):
        arguments = feedforward_cases.case("relu_grid_costs", sizes, loss, dense=own, own_shifts=own, own_tables=own)
        limits = (next(floors), 5, *feedforward_cases.grid_limits(sizes, torch.float64)) if own else ()
        yield Case("relu_grid_costs", (*arguments, *limits))


def compare(case: Case, device: str) -> None:
    """Run a kernel on a device, and the reference on the CPU."""
    name, arguments, exact = case
    found = run("triton", name, tuple(_moved(argument, device) for argument in arguments)).cpu()
    tolerance = 0.0 if exact else 1e-12
    torch.testing.assert_close(found, run("reference", name, arguments), rtol=tolerance, atol=tolerance)


def _moved(argument: Any, device: str) -> Any:
    if isinstance(argument, list):
        return [part.to(device) for part in argument]
    return argument.to(device) if isinstance(argument, Tensor) else argument


def compare_turns(name: str, arguments: tuple[Any, ...]) -> None:
    """Costs are the same bits whether all candidates go at once or one unit, or row, after the other."""
    folder, limits = TURNS[name]
    module = import_module(f"lightning_polystep.kernels.{folder}.triton")
    at_once = run("triton", name, arguments)
    with mock.patch.multiple(module, **dict.fromkeys(limits, 1)):
        assert torch.equal(run("triton", name, arguments), at_once)


class Launches:
    """Which kernels were launched, each with the types of its arguments and the constants it is compiled for."""

    def __init__(self) -> None:
        self.signatures: set[str] = set()

    def note(self, kernel: Any, *arguments: Any, **options: Any) -> None:
        parameters = inspect.signature(kernel.fn).parameters
        named = {key: options.pop(key) for key in list(options) if key in parameters}
        values = inspect.signature(kernel.fn).bind(*arguments, **named).arguments
        types: dict[str, str] = {}
        constants: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(value, Tensor):
                types[key] = "*" + _TYPES[value.dtype]
            elif parameters[key].annotation is not inspect.Parameter.empty or value == 1:
                constants[key] = value  # Triton takes every argument that is 1 for a constant
            else:
                types[key] = "i32"
        place = (kernel.fn.__module__, kernel.fn.__name__)
        self.signatures.add(json.dumps([*place, types, constants, options], sort_keys=True))


_TYPES = {torch.float32: "fp32", torch.float64: "fp64", torch.int64: "i64", torch.int8: "i8", torch.uint8: "u8"}


def main() -> None:
    """Compare everything and print the launches."""
    from triton.runtime.interpreter import InterpretedFunction  # noqa: PLC0415 - a machine may have no Triton

    launches, interpret = Launches(), InterpretedFunction.run

    def launch(kernel: Any, *arguments: Any, grid: Any, warmup: bool, **options: Any) -> None:
        launches.note(kernel, *arguments, **options)
        interpret(kernel, *arguments, grid=grid, warmup=warmup, **options)

    with mock.patch.object(InterpretedFunction, "run", launch):
        for case in all_cases():
            compare(case, "cpu")
    compare_turns("lif_train_costs", cases.case("lif_train_costs", Sizes(hidden=(3,)), "mse_rate", NEURONS[0]))
    sizes = feedforward_cases.Sizes(behind=(3,))
    for name in ("relu_direct_costs", "relu_grid_costs", "unit_change_losses"):
        compare_turns(name, feedforward_cases.case(name, sizes, "mse"))
    print("[" + ",".join(sorted(launches.signatures)) + "]")


if __name__ == "__main__":
    main()
