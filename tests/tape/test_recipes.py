"""How calls of operators are recorded: those that compute nothing, that write, that are views, that ask others."""

import pytest
import torch

from lightning_polystep.tape import Recorder
from lightning_polystep.tape.recipes import RECIPES, recipe_of
from lightning_polystep.tape.tape import Unknown

aten = torch.ops.aten


def record(run):
    with torch.no_grad(), Recorder() as recorder:
        result = run()
    return recorder.tape, result


@pytest.mark.parametrize(
    ("function", "writes", "is_view"),
    [(aten.mul.Tensor, False, False), (aten.mul_.Tensor, True, False), (aten.view.default, False, True)],
)
def test_an_operator_is_run_as_it_is_and_its_facts_are_kept(function, writes, is_view):
    recipe = recipe_of(function)
    assert RECIPES[function] is recipe
    assert (recipe.run, recipe.recorded) == (function, function)
    assert (recipe.writes, recipe.is_view, recipe.beside) == (writes, is_view, False)


def test_operators_of_others_are_run_so_that_numbers_that_they_read_stay_on_the_tape():
    function = torch.ops.profiler._record_function_enter_new.default
    recipe = recipe_of(function)
    assert recipe.beside
    assert recipe.run is not function


def test_what_tells_a_profiler_where_a_step_is_is_no_operation():
    def step():
        with torch.profiler.record_function("part"):
            return torch.ones(2) * 2

    tape, _ = record(step)
    assert not any("profiler" in str(operation.function) for operation in tape.operations)


@pytest.fixture
def process(tmp_path):
    """A group of one process."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def reduced(value):
    torch.distributed.all_reduce(value)
    return value


def gathered(value):
    out = [torch.zeros_like(value)]
    torch.distributed.all_gather(out, value)
    return out[0]


def reduced_functionally(value):
    return torch.distributed._functional_collectives.all_reduce(value, "sum", torch.distributed.group.WORLD)


@pytest.mark.usefixtures("process")
@pytest.mark.parametrize("communicate", [reduced, gathered, reduced_functionally])
def test_what_other_processes_tell_is_not_repeated(communicate):
    """A collective in a replay would wait for processes that score other candidates."""
    tape, _ = record(lambda: communicate(torch.ones(2) * 2).sum())
    last = tape.operations[tape.values[tape.operations[-1].operands[0]].producer]
    while not isinstance(last.function, Unknown):
        last = tape.operations[tape.values[last.operands[0]].producer]
    assert "waits for other processes" in last.function.reason


@pytest.mark.usefixtures("process")
def test_what_is_only_told_to_other_processes_stays_on_the_tape():
    def step():
        loss = torch.ones(2) * 2
        gathered(loss)
        return loss.sum()

    tape, loss = record(step)
    producer = tape.operations[tape.values[tape.find(loss)].producer]
    assert tape.operations[tape.values[producer.operands[0]].producer].function is aten.mul.Tensor
