"""Programs are read off a tape."""

import torch
from torch import nn

from lightning_polystep.tape import Recorder, Stage, compile_program, whole_program
from tests.helpers.tapes import compiled


def test_equal_operations_run_once():
    layer, x = nn.Linear(4, 3), torch.randn(5, 4)
    tape, program = compiled(lambda: sum((layer(x) * t).sum() for t in range(6)), layer.weight)
    products = [s for s in program.steps if "mm" in str(tape.operations[s.number].function)]
    assert len(products) == 1
    assert len(program.merged) == 10


def test_only_numbers_that_depend_on_the_parameters_are_doubted():
    weight, other = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

    def run():
        (other * 2).sum().item()
        return (weight * 2).sum() + (other * 3).sum()

    assert not compiled(run, weight)[1].escapes
    assert compiled(run, other)[1].escapes


def test_values_that_change_at_all_units_have_samples_but_no_unit():
    first, second, x = nn.Linear(4, 5), nn.Linear(5, 3), torch.randn(7, 4)
    with torch.no_grad(), Recorder() as recorder:
        hidden = first(x)
        loss = second(torch.relu(hidden)).square().mean()
    tape = recorder.tape
    program = whole_program(tape, [tape.find(hidden)], tape.find(loss))
    assert program.unit is None
    assert program.samples == 7
    assert program.position(tape.find(hidden), program.sample) == 0


def test_norms_act_place_by_place_where_their_statistics_are_kept():
    layer, norm, x = nn.Linear(4, 5), nn.LayerNorm(5), torch.randn(7, 4)
    tape, program = compiled(lambda: norm(layer(x)).tanh().square().mean(), layer.weight)
    (leaf, loss) = tape.leaves[id(layer.weight)], program.loss
    kept = compile_program(tape, {leaf: 0}, loss, as_recorded=True)

    def stages(of):
        return {str(tape.operations[s.number].function): s.stage for s in of.steps}

    assert stages(program)["aten.tanh.default"] == Stage.SAMPLE
    assert stages(kept)["aten.tanh.default"] == Stage.UNIT
    assert (program.as_recorded, kept.as_recorded) == (False, True)
