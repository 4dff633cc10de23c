"""Update rules are those of torch."""

import pytest
import torch

from lightning_polystep.baselines.rules import RULES

CASES = {
    "plain": ("sgd", {"momentum": 0.0}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": ("sgd", {"momentum": 0.7}, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.7)),
    "adam": ("adam", {"betas": (0.8, 0.95)}, lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95))),
}


@pytest.mark.parametrize(("rule", "group", "make"), CASES.values(), ids=CASES)
def test_a_rule_steps_as_torchs_optimizer_does(rule, group, make):
    theirs = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    optimizer, ours, state = make([theirs]), torch.zeros(4, dtype=torch.float64), {}
    for step in range(6):
        gradient = torch.randn(4, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        theirs.grad = gradient.clone()
        optimizer.step()
        ours = ours - 0.1 * RULES[rule](gradient, state, group)
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-9, atol=1e-12)
    kept = optimizer.state[theirs]
    assert {name for name, value in kept.items() if value is not None} == state.keys()
    for name, value in state.items():
        torch.testing.assert_close(value, kept[name])
