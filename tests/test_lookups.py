"""Embeddings are probed where a batch reads them, and the row of padding is never trained."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from lightning_polystep import Engine, PolyStep
from lightning_polystep.blocks import find_blocks
from lightning_polystep.lookups import asked_for, is_something, rows_to_probe
from lightning_polystep.sites import observing


def table_of(module, **options):
    blocks = find_blocks(module, PolyStep(module.parameters(), **options).param_groups)
    return next(block for block in blocks if block.lookups or block.padding is not None)


class Words(nn.Module):
    """Words that are looked up, averaged and scored."""

    def __init__(self, vocabulary=50, padding_idx=None, bag=False, tied=False):
        super().__init__()
        kind = nn.EmbeddingBag if bag else nn.Embedding
        self.words, self.head = kind(vocabulary, 6, padding_idx=padding_idx), nn.Linear(6, vocabulary if tied else 3)
        self.bag, self.tied = bag, tied

    def forward(self, x):
        hidden = self.words(x) if self.bag else self.words(x).mean(1)
        return hidden @ self.words.weight.T if self.tied else self.head(hidden.tanh())


def engine_of(module, **options):
    return Engine(module, PolyStep(module.parameters(), seed=0, lr=0.5, **options), announce=None)


def step(engine, x, y):
    before = {name: p.detach().clone() for name, p in engine.module.named_parameters()}
    engine.step(lambda: functional.cross_entropy(engine.module(x), y))
    table = engine.module.words.weight.detach()
    return (table != before["words.weight"]).any(1).nonzero()[:, 0].tolist()


@pytest.mark.parametrize("subspace", ["inputs", "gaussian", "full"])
@pytest.mark.parametrize("bag", [False, True])
def test_the_row_of_padding_stays_what_it_is(bag, subspace):
    torch.manual_seed(0)
    module = Words(padding_idx=-3, bag=bag)
    with torch.no_grad():
        module.words.weight[-3] = 0.25  # as from a file of vectors
    engine = engine_of(module, subspace=subspace, weight_decay=0.1)
    for _ in range(5):
        step(engine, torch.randint(44, 50, (16, 4)), torch.arange(16) % 3)
    assert torch.equal(module.words.weight[-3].detach(), torch.full((6,), 0.25))


@pytest.mark.parametrize("subspace", ["inputs", "full"])
def test_only_rows_that_the_batch_reads_are_probed(subspace):
    torch.manual_seed(0)
    engine = engine_of(Words(), subspace=subspace)
    y = torch.arange(16) % 3
    assert set(step(engine, torch.arange(8).repeat(16, 1), y)) <= set(range(8))
    block = next(a.block for a in engine.plan.assignments if a.block.name.startswith("words"))
    parts = block.rows // 50
    assert block.rows_in_play == 8 * parts
    moved = step(engine, torch.arange(30, 40).repeat(16, 1), y)
    assert moved
    assert set(moved) <= set(range(30, 40))


def test_rows_read_in_turn_are_all_learnt():
    torch.manual_seed(0)
    module = Words(vocabulary=12)
    engine, draw = engine_of(module, rank=6), torch.Generator().manual_seed(0)
    for _ in range(80):
        x = torch.randint(12, (32, 1), generator=draw)
        step(engine, x, x[:, 0] % 3)
    x = torch.arange(12)[:, None]
    assert float((module(x).argmax(1) == x[:, 0] % 3).float().mean()) > 0.9


class Sometimes(Words):
    """Looks nothing up in some batches."""

    def forward(self, x):
        return self.head(x) if x.is_floating_point() else super().forward(x)


@pytest.mark.parametrize("first", [0, 1])
def test_a_table_that_the_batch_does_not_read_proposes_nothing(first):
    torch.manual_seed(0)
    engine, y = engine_of(Sometimes()), torch.arange(16) % 3
    batches = [torch.randn(16, 6), torch.randint(0, 9, (16, 4))]
    for number in range(4):
        batch = batches[(first + number) % 2]
        moved = step(engine, batch, y)
        assert set(moved) <= (set() if batch.is_floating_point() else set(range(9)))


def test_a_table_that_is_read_elsewhere_too_is_probed_everywhere():
    torch.manual_seed(0)
    engine = engine_of(Words(tied=True))
    x = torch.arange(8).repeat(16, 1)
    moved = [row for _ in range(8) for row in step(engine, x, torch.arange(16))]
    assert max(moved) >= 8
    block = engine.plan.assignments[0].block
    assert not block.lookups
    assert "read elsewhere" in block.remark


def test_a_table_tied_to_a_layer_has_no_padding():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.words, self.head = nn.Embedding(5, 3, padding_idx=0), nn.Linear(3, 5, bias=False)
            self.head.weight = self.words.weight

    module = Tied()
    (block,) = find_blocks(module, PolyStep(module.parameters()).param_groups)
    assert (block.lookups, block.padding) == ((), None)


def test_two_embeddings_of_one_table():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Embedding(9, 3), nn.Embedding(9, 3)
            self.right.weight = self.left.weight

        def forward(self, x):
            return self.left(x[:, 0]) + self.right(x[:, 1])

    module = Two()
    block = table_of(module)
    with observing(module, [block]) as seen:
        module(torch.tensor([[1, 7], [1, 4]]))
    assert seen.asked(block).tolist() == [1, 4, 7]


def test_an_embedding_with_a_forward_of_its_own_may_read_any_row():
    class Hashed(nn.Embedding):
        def forward(self, x):
            return super().forward(x % self.num_embeddings)

    module = Hashed(7, 2, padding_idx=1)
    block = table_of(module)
    assert (block.lookups, block.padding) == ((), 1)
    with observing(module, [block]) as seen:
        module(torch.tensor([700]))
    assert seen.asked(block) is None
    assert rows_to_probe(block, None).tolist() == [0, 2, 3, 4, 5, 6]


def test_what_a_call_asks_for():
    assert asked_for((torch.tensor([[3, 1], [3, 0]]),), {}).tolist() == [0, 1, 3]
    assert asked_for((), {"input": torch.tensor([2], dtype=torch.int32)}).dtype == torch.int64
    assert asked_for((torch.zeros(2),), {}) is None
    assert asked_for((), {}) is None
    assert is_something(None)
    assert not is_something(torch.zeros(0))


def test_large_tables_leave_the_budget_to_others():
    torch.manual_seed(0)
    engine = engine_of(Words(vocabulary=20_000))
    step(engine, torch.randint(0, 20_000, (8, 4)), torch.arange(8) % 3)
    words, head = engine.plan.assignments
    assert head.rank >= 4
    assert words.most_rows < 200
    assert words.most_rows * 2 * words.rank <= 4 * head.block.rows * 2 * head.rank * 32


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
@pytest.mark.parametrize("sizes", [(0, 3), (3, 0), (0, 0)])
def test_empty_layers_beside_others(sizes):
    kind = nn.Linear(*sizes)
    module = nn.ModuleDict({"empty": kind, "full": nn.Linear(4, 2)})
    x, y = torch.randn(6, 4), torch.arange(6) % 2

    def loss():
        extra = kind(torch.zeros(6, sizes[0])).square().sum()
        return functional.cross_entropy(module["full"](x), y) + extra

    engine = Engine(module, PolyStep(module.parameters(), seed=0), announce=None)
    losses = [float(engine.step(loss)) for _ in range(5)]
    assert losses[-1] < losses[0]
