"""The plan is read in 80 columns, names what a step costs, and each obstacle once."""

import re

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep import Engine, PolyStep
from lightning_polystep.scoring.plan_table import plan_text, together

LAYERS = 4


def planned(module, closure, **options):
    engine = Engine(module, PolyStep(module.parameters(), lr=0.1, seed=0), announce=None, **options)
    engine.step(closure)
    return engine.plan


@pytest.fixture(scope="module")
def transformer():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    net = nn.ModuleDict({"encoder": nn.TransformerEncoder(layer, LAYERS), "head": nn.Linear(16, 3)})
    x, y = torch.randn(4, 5, 16), torch.tensor([0, 1, 2, 0])
    return planned(net, lambda: F.cross_entropy(net["head"](net["encoder"](x).mean(1)), y), max_candidates=600)


@pytest.mark.parametrize("width", [80, 100, 120])
def test_a_transformer_fits_on_a_page(transformer, width):
    assert len(transformer.assignments) >= 9 * LAYERS
    lines = plan_text(transformer, width).splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 56
    table = [line for line in lines if " tape " in line]
    assert all(len(line.rstrip()) <= width for line in table)
    joined = " ".join(plan_text(transformer, width).split())
    for cell in ("0-3.", "linear1", "head", "candidates", "of the rows", "of all directions"):
        assert cell in joined, cell
    assert f"{transformer.candidates:,} candidates per step" in joined


def test_every_block_is_in_some_row(transformer):
    text = plan_text(transformer, 160)
    for name in ("self_attn.in_proj_weight", "self_attn.out_proj", "linear2", "norm1.weight", "norm2.bias"):
        assert re.search(rf"encoder\.layers\.[\d,-]+\.{re.escape(name)}", text)


def test_the_share_of_rows_and_directions_is_that_of_the_step():
    net = nn.Linear(9, 10, bias=False)
    plan = planned(net, lambda: net(torch.randn(20, 9)).square().mean(), max_candidates=40)
    (assignment,) = plan.assignments
    rows, rank = assignment.most_rows or 10, min(assignment.rank, 9)
    assert rows * rank < 90
    text = " ".join(str(plan).split())
    assert f"a step probes {100 * rows / 10:.2g} % of the rows, in {100 * rows * rank / 90:.2g} % of all" in text


def test_nothing_is_said_of_shares_where_all_is_probed():
    net = nn.Linear(3, 2, bias=False)
    assert "a step probes" not in str(planned(net, lambda: net(torch.randn(20, 3)).square().mean()))


def test_candidates_of_the_loop_count_as_runs_of_the_step():
    net, x = nn.Linear(3, 2), torch.randn(20, 3)
    plan = planned(net, lambda: torch.tensor(float(net(x).square().mean().numpy())), max_candidates=16)
    text = " ".join(str(plan).split())
    assert f"{plan.candidates} of them by a run of the whole training step each" in text
    assert "the loss does not depend on it, as far as the tape shows" in text


def test_names_that_differ_in_a_number_are_one():
    assert together(["a.0.w", "a.1.w", "a.3.w", "a.0.b"]) == ["a.0-1,3.w", "a.0.b"]
    assert together(["0.layers.0.w", "0.layers.1.w", "1"]) == ["0.layers.0-1.w", "1"]
    assert together(["", "0", "1.w", "2.w"]) == ["", "0", "1.w", "2.w"], "places in a Sequential are told apart"
