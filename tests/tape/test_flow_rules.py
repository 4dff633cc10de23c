"""What a rule calls unmixed stays where it is: changing one place of an input changes that place of the output only."""

import pytest
import torch
from torch.nn import functional as F

from lightning_polystep.tape import Recorder, compile_program

OPERATIONS = {
    "view": lambda x: x.view(3, 2, 2, 4),
    "merge": lambda x: x.flatten(0, 1),
    "merge and cut": lambda x: x.flatten(0, 1).view(6, 2, 4),
    "permute": lambda x: x.permute(2, 0, 1),
    "expand": lambda x: x.unsqueeze(1).expand(3, 5, 4, 4),
    "pad": lambda x: F.pad(x, (0, 0, 1, -1)),
    "pad the last": lambda x: F.pad(x, (1, 1)),
    "flip": lambda x: x.flip(1),
    "roll": lambda x: x.roll(1, 1),
    "roll all": lambda x: x.roll(1),
    "slice": lambda x: x[:, 1:],
    "split": lambda x: torch.cat(x.split(2, 1)[::-1], 1),
    "unbind and stack": lambda x: torch.stack(x.unbind(1)[::-1], 1),
    "softmax": lambda x: x.softmax(2),
    "cumsum": lambda x: x.cumsum(0),
    "sort": lambda x: x.sort(1)[0],
    "sum": lambda x: x.sum(1),
    "mean": lambda x: x.mean((0, 2), keepdim=True),
    "norm": lambda x: x.norm(dim=2),
    "layer norm": lambda x: F.layer_norm(x, (4,)),
    "group norm": lambda x: F.group_norm(x, 2),
    "instance norm": F.instance_norm,
    "batch norm": lambda x: F.batch_norm(x, torch.zeros(4), torch.ones(4)),
    "batch norm in training": lambda x: F.batch_norm(x, None, None, training=True),
    "product": lambda x: x @ torch.ones(4, 2),
    "product of itself": lambda x: x @ x.transpose(1, 2),
    "convolution": lambda x: F.conv1d(x, torch.ones(2, 4, 2)),
    "depthwise": lambda x: F.conv1d(x, torch.ones(4, 1, 2), groups=4),
    "transposed": lambda x: F.conv_transpose1d(x, torch.ones(4, 2, 2)),
    "pool": lambda x: F.max_pool1d(x, 2),
    "gather": lambda x: x.gather(1, torch.zeros(3, 2, 4, dtype=torch.long)),
    "scatter": lambda x: x.scatter(1, torch.zeros(3, 2, 4, dtype=torch.long), 1.0),
    "index": lambda x: x[:, torch.tensor([1, 0])],
    "diagonal": lambda x: x[:, :, :3].diagonal(dim1=0, dim2=2),
    "attention": lambda x: F.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None]),
    "outer": lambda x: x[:, :, None] * x[:, None],
    "where": lambda x: torch.where(x > 0, x, x.sum()),
}


def recorded(name, axis):
    """An operation whose operand changes in one place of an axis: operand, result, tape, program."""
    x = torch.randn(3, 4, 4)
    with torch.no_grad(), Recorder() as recorder:
        moved = x * 1.0
        out = OPERATIONS[name](moved)
        loss = out.sum()
    tape = recorder.tape
    program = compile_program(tape, {tape.find(moved): axis}, tape.find(loss))
    return x, out, tape, program


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_change_stays_where_the_rule_says(name, axis):
    """The unit is one place of an axis; outside of it the output of an operation within the unit must not move."""
    x, out, tape, program = recorded(name, axis)
    if program.unit is None or tape.find(out) not in program.home or program.home[tape.find(out)][0] != 0:
        return
    place = 1
    other = x.clone()
    other.select(axis, place).add_(torch.randn_like(other.select(axis, place)))
    changed = (OPERATIONS[name](other) != out).reshape(out.shape)
    slots = [label for own in program.axes[tape.find(out)] for label in (own or (None,))]
    sizes = [1 if label is None else program.labels.size((label,)) for label in slots]
    apart = changed.reshape(sizes).movedim(slots.index(program.unit), 0)
    rest = [place_ for place_ in range(len(apart)) if place_ != place]
    assert not bool(apart[rest].any()), "a change has left its unit"


@pytest.mark.parametrize(
    ("name", "axis"),
    [("view", 0), ("merge", 2), ("permute", 1), ("flip", 0), ("softmax", 1), ("sum", 2), ("layer norm", 0),
     ("group norm", 0), ("batch norm", 1), ("batch norm in training", 1), ("product", 1), ("convolution", 0),
     ("depthwise", 1), ("pool", 1), ("gather", 2), ("attention", 0), ("where", 0)],
)  # fmt: skip
def test_what_is_place_by_place_is_replayed_by_units(name, axis):
    _, out, tape, program = recorded(name, axis)
    mixed = name == "where"  # it takes the sum of all
    assert (program.home[tape.find(out)][0] == 0) != mixed
