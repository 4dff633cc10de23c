"""An operation on many candidates at once does for each what it does for one."""

import pytest
import torch
from torch.nn import functional as F

from lightning_polystep.tape import Recorder, compile_program
from lightning_polystep.tape.execute import execute
from lightning_polystep.tape.frame import Frame
from lightning_polystep.tape.program import Stage

TABLE, INDEX = torch.randn(5, 3), torch.randint(2, (2, 3, 4))
OPERATIONS = {
    "add": lambda x: x + torch.ones(4),
    "compare": lambda x: x > 0.1,
    "where": lambda x: torch.where(x > 0, x, -0.1),
    "whole numbers": lambda x: (3 * x).floor().long(),
    "a number of another type": lambda x: x * x.sum().double(),
    "bits": lambda x: x.view(torch.int32),
    "clone": lambda x: x.clone(memory_format=torch.contiguous_format),
    "view": lambda x: x.view(6, 4),
    "squeeze": lambda x: x.unsqueeze(0).squeeze(),
    "expand": lambda x: x[None].expand(2, -1, -1, -1),
    "transpose": lambda x: x.transpose(0, -1),
    "t": lambda x: x[0].t(),
    "permute": lambda x: x.permute(-1, 0, 1),
    "select": lambda x: x.select(-1, -2),
    "slice": lambda x: x[:, 1::2],
    "unbind": lambda x: x.unbind(-1)[1],
    "split": lambda x: x.split([1, 3], -1)[1],
    "stack": lambda x: torch.stack([x, torch.ones(2, 3, 4)], -1),
    "cat": lambda x: torch.cat([torch.ones(2, 1, 4), x], 1),
    "cat with nothing": lambda x: torch.cat([torch.tensor([]), x]),
    "pad": lambda x: F.pad(x, (1, 0, 0, 2), value=0.5),
    "select scatter": lambda x: x.select_scatter(torch.zeros(3, 4), 0, 1),
    "slice scatter": lambda x: torch.zeros(2, 3, 4).slice_scatter(x[:, :1], 1, 2, 3),
    "sum": torch.Tensor.sum,
    "sum of axes": lambda x: x.sum((0, -1), keepdim=True),
    "mean": lambda x: x.mean(1),
    "amax": lambda x: x.amax((0, 1)),
    "max with its place": lambda x: x.max(-1)[1],
    "max": torch.Tensor.max,
    "argmax of all": torch.Tensor.argmax,
    "norm": lambda x: x.norm(),
    "norm of an axis": lambda x: x.norm(dim=1),
    "variance": lambda x: x.var(1),
    "variance of all": torch.Tensor.var,
    "logsumexp": lambda x: x.logsumexp((0, 1)),
    "any": lambda x: (x > 0).any(1),
    "softmax": lambda x: x.softmax(1),
    "cumsum": lambda x: x.cumsum(-1),
    "sort": lambda x: x.sort(1)[0],
    "flip": lambda x: x.flip(0, 2),
    "gather": lambda x: x.gather(2, INDEX),
    "index": lambda x: x[:, torch.tensor([2, 0])],
    "scatter": lambda x: x.scatter(2, INDEX, 0.0),
    "embedding": lambda x: F.embedding((2 * x).sigmoid().mul(5).long(), TABLE),
    "embedding of a table": lambda x: F.embedding(INDEX[0], x[0]),
    "log-likelihood": lambda x: F.nll_loss(x[0], torch.tensor([0, 3, 1]), reduction="none"),
    "margin": lambda x: F.multi_margin_loss(x[0], torch.tensor([0, 3, 1]), reduction="none"),
    "binary cross-entropy": lambda x: F.binary_cross_entropy_with_logits(x, torch.ones(2, 3, 4), reduction="none"),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_does_for_each_candidate_what_it_does_for_one(name):
    x, candidates = torch.randn(2, 3, 4), torch.randn(5, 2, 3, 4)
    with torch.no_grad(), Recorder() as recorder:
        leaf = x * 1
        out = OPERATIONS[name](leaf)
        total = out.float().sum() + leaf.sum()
    tape = recorder.tape
    index = tape.find(leaf)
    program = compile_program(tape, {index: None}, tape.find(total))
    frame = Frame(
        tape, program, Stage.WHOLE, torch.arange(5), torch.zeros(5, dtype=torch.long), values={index: candidates}
    )
    for step in program.steps:
        execute(frame, program.operation(tape, step.number))
    for number, each in enumerate(candidates):
        expected = OPERATIONS[name](each)
        found = frame.values[program.same.get(tape.find(out), tape.find(out))][number]
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found.reshape(expected.shape), expected)
