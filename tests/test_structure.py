"""A plan that was made for other parts of the network is noticed, said and made anew."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import prune

from lightning_polystep import Engine, PolyStep
from lightning_polystep.structure import Structure, said


def pruned(net):
    prune.l1_unstructured(net[2], "weight", 0.5)


def reparametrised(net):
    nn.utils.parametrizations.weight_norm(net[2])


def activated(net):
    net[1] = nn.Tanh()


def lengthened(net):
    net.append(nn.Softmax(1))


CHANGES = {
    pruned: "2.weight is gone, 2.weight_orig is new",
    reparametrised: "2.weight is gone, 2.parametrizations.weight.original0 is new",
    activated: "1 is another Tanh",
    lengthened: "3 is new",
}


def problem():
    return torch.randn(12, 4), torch.randint(3, (12,))


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))


def costs_of(engine):
    found = []

    def take(pending):
        found.extend(torch.cat([each.clone() for each in pending.costs]))
        return pending

    engine.optimizer.binding.agree = take
    return found


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_costs_are_those_of_the_network_as_it_is_after_a_change(change):
    """Of a module that is a stack, which reads weights where they were.

    The directions are random ones, as the loop does not see what pruned rows are multiplied with.
    """

    def run(evaluation):
        torch.manual_seed(0)
        task = nn.Module()
        task.network, task.criterion = network(), nn.CrossEntropyLoss()
        x, y = problem()
        optimizer = PolyStep(task.parameters(), lr=0.0, rank=2, subspace="gaussian", seed=0)
        engine, found = Engine(task, optimizer, evaluation=evaluation, announce=None), None
        for step in range(3):
            if step == 1:
                change(task.network)
            found = costs_of(engine)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                engine.step(lambda: task.criterion(task.network(x), y))
            told = [str(each.message) for each in caught if "has changed" in str(each.message)]
            assert len(told) == (step == 1), "once"
            assert all(f"network.{clause}" in text for text in told for clause in CHANGES[change].split(", "))
        return torch.stack(found)

    fast, slow = run("auto"), run("loop")
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_a_layer_that_no_optimizer_holds_is_named():
    net, (x, y) = network(), problem()
    optimizer = PolyStep(net.parameters(), lr=0.1, rank=2, seed=0)
    engine = Engine(net, optimizer, announce=None)
    engine.step(lambda: F.cross_entropy(net(x), y))
    net[2] = nn.Linear(5, 3)
    with (
        pytest.warns(UserWarning, match="2.weight, 2.bias came into the network"),
        pytest.warns(UserWarning, match="2 is another Linear"),
    ):
        engine.step(lambda: F.cross_entropy(net(x), y))
    optimizer.add_param_group({"params": list(net[2].parameters())})
    before = net[2].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        engine.step(lambda: F.cross_entropy(net(x), y))
    assert not torch.equal(before, net[2].weight)


def test_neurons_that_make_their_buffers_in_the_first_pass_are_no_change():
    class Cell(nn.Module):
        def forward(self, x):
            if not hasattr(self, "membrane"):
                self.register_buffer("membrane", torch.zeros(3), persistent=False)
            self.membrane = self.membrane * 0.5 + x.mean(0).detach()
            return x + self.membrane

    net, (x, y) = nn.Sequential(nn.Linear(4, 3), Cell()), problem()
    engine = Engine(net, PolyStep(net.parameters(), rank=2, seed=0), announce=None)
    for _ in range(3):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            engine.step(lambda: F.cross_entropy(net(x), y))
        plan = engine.plan
    assert plan is engine.plan


def test_changes_are_counted_from_the_last_time():
    net = network()
    structure = Structure(net)
    del net[2]
    assert structure.changes() == ["2.weight is gone", "2.bias is gone"]
    assert structure.changes() == []
    assert said(["a is new"]) == "a is new"
