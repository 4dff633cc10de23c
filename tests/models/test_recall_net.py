"""The network for associative recall: its equations, and that it can do what it is for."""

import pytest
import torch
from torch.nn import functional as F

from datamodules import AssociativeRecall
from lightning_polystep import Engine, PolyStep
from lightning_polystep.audit import audit
from lightning_polystep.functional import argmax_attention
from models import RecallNet
from models.recall_net import TokenPairs


def solved(num_keys, num_values):
    """A network whose weights are written down: the query's own token is looked up among the tokens before."""
    tokens = num_keys + num_values
    network = RecallNet(tokens, num_values, num_heads=1)
    attention, head = network[1], network[2]
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        own, before = torch.arange(tokens), torch.arange(tokens, 2 * tokens)
        attention.q_proj.weight[own, own] = 1
        attention.k_proj.weight[own, before] = 1
        attention.v_proj.weight[own, own] = 1
        attention.out_proj.weight[own, own] = 1
        head.weight[torch.arange(num_values), torch.arange(num_keys, tokens)] = 1
    return network


def test_equals_its_equations():
    network, tokens = RecallNet(6, 3, num_heads=2), torch.randint(6, (9, 5))
    attention, head = network[1], network[2]
    now = F.one_hot(tokens, 6).float()
    before = torch.cat([torch.zeros(9, 1, 6), now[:, :-1]], 1)
    x = torch.cat([now, before], 2)
    query, key, value = attention.q_proj(x[:, -1:]), attention.k_proj(x[:, :-1]), attention.v_proj(x[:, :-1])
    taken = [argmax_attention(*(t[..., half] for t in (query, key, value))) for half in (slice(6), slice(6, 12))]
    torch.testing.assert_close(network(tokens), head(attention.out_proj(torch.cat(taken, 2)))[:, 0])


def test_one_head_can_recall_everything():
    data = AssociativeRecall(train_size=500, val_size=10, test_size=10)
    data.setup()
    right = solved(8, 8)(data.train_set.images).argmax(1) == data.train_set.labels
    assert bool(right.all())


def test_without_a_choice_of_keys_it_cannot():
    """The mean of all values in place of the best key's: a bag of tokens, which is right in one case of five."""
    data = AssociativeRecall(train_size=2000, val_size=10, test_size=10)
    data.setup()
    tokens, labels = data.train_set.images, data.train_set.labels
    network = solved(8, 8)
    attention, head = network[1], network[2]
    mean = attention.v_proj(network[0](tokens)[:, :-1]).mean(1)
    candidates = head(attention.out_proj(mean))
    present = candidates.gather(1, labels[:, None])
    assert bool((present >= candidates).all())  # the answer is among the best, and so are the four others
    assert bool(((candidates == candidates.amax(1, keepdim=True)).sum(1) == 5).all())


def test_queries_and_keys_have_no_gradient_and_strictly_nothing_has():
    tokens, labels = torch.randint(6, (20, 5)), torch.randint(3, (20,))
    for strict in (False, True):
        network = RecallNet(6, 3, strict=strict)
        found = audit(network, lambda network=network: F.cross_entropy(network(tokens), labels))
        without = {row.name for row in found.rows if not row.nonzero}
        assert {f"1.{name}_proj.{kind}" for name in "qk" for kind in ("weight", "bias")} <= without
        assert (found.share == 0) is strict


def test_different_tokens_are_taken_from_the_first_step():
    network, tokens = RecallNet(), torch.randint(16, (200, 11))
    attention = network[1]
    attention.return_indices = True
    x = network[0](tokens)
    indices = super(type(attention), attention).forward(x[:, -1:], x[:, :-1]).indices
    assert len(indices.unique()) == 10


@pytest.mark.parametrize("tokens", [torch.rand(2, 5), torch.zeros(5, dtype=torch.int64)])
def test_anything_but_token_numbers_is_refused(tokens):
    with pytest.raises(ValueError, match=r"TokenPairs: tokens must be integers \(N, L\)"):
        TokenPairs(4)(tokens)


def test_it_learns_to_recall_by_forward_passes_in_a_few_steps():
    """A bag of tokens is right in one of five cases."""
    torch.manual_seed(0)
    data = AssociativeRecall(num_pairs=5, num_keys=8, num_values=8, train_size=30 * 256, batch_size=256)
    data.setup("fit")
    net = RecallNet(num_tokens=16, num_classes=8, num_heads=2)
    engine = Engine(net, PolyStep(net.parameters(), lr=0.2, seed=0), announce=None)
    for tokens, answers in data.train_dataloader():
        engine.step(lambda tokens=tokens, answers=answers: F.cross_entropy(net(tokens), answers))
    tokens, answers = next(iter(data.val_dataloader()))
    assert float((net(tokens).argmax(-1) == answers).float().mean()) > 0.9
