"""What of a step belongs together, and what lies behind it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring import reading as reading_module
from lightning_polystep.scoring.reading import Reading
from lightning_polystep.tape import NotOnTapeError, product_of
from tests.helpers.tapes import blocks_of, record


class Twice(nn.Module):
    """One layer that is applied to two parts of the input, or to what it has made before."""

    def __init__(self, recurrent):
        super().__init__()
        self.layer, self.head, self.recurrent = nn.Linear(4, 4), nn.Linear(4, 3), recurrent

    def forward(self, x):
        first = self.layer(x).tanh()
        return self.head(first + self.layer(first if self.recurrent else x.roll(1, 1)).tanh())


class Cut(nn.Module):
    """A layer whose units are cut into two parts at once, or used whole beside."""

    def __init__(self, whole):
        super().__init__()
        self.first, self.head, self.whole = nn.Linear(4, 6), nn.Linear(3, 3), whole

    def forward(self, x):
        made = self.first(x)
        left, right = made.split(3, 1)
        return self.head(left.tanh() * right.sigmoid()) + (made.mean() if self.whole else 0.0)


def reading_of(net, x=None):
    torch.manual_seed(0)
    x = torch.randn(9, 4) if x is None else x
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(9) % 3))
    return Reading(recording), {block.name: block for block in blocks_of(net)}


@pytest.mark.parametrize("recurrent", [False, True])
def test_products_with_the_same_weights_make_one_layer_unless_one_leads_to_the_other(recurrent):
    reading, blocks = reading_of(Twice(recurrent))
    products = reading.products(blocks["layer"])
    assert len(products) == 2
    assert reading.is_recurrent(products) == recurrent
    assert not reading.is_recurrent(products[:1])
    as_taken = [product_of(reading.recording.taken(), each) for each in reading.operations()]
    first = next(each for each in as_taken if each is not None and each.made == products[0].made)
    assert len(reading.alike(first)) == (1 if recurrent else 2)


def test_operations_are_those_that_lead_to_the_loss_read_once():
    reading, _ = reading_of(Twice(False))
    tape, operations = reading.recording.taken(), reading.operations()
    assert reading.operations() is operations
    assert reading.recording.loss in operations[-1].outputs
    assert sum(product_of(tape, each) is not None for each in operations) == 3


def test_entries_of_a_block_are_read_once():
    reading, blocks = reading_of(Twice(False))
    entries = reading.entries(blocks["layer"])
    assert reading.entries(blocks["layer"]) is entries
    assert [each.made for each in entries.products] == [each.made for each in reading.products(blocks["layer"])]


def test_what_reaches_the_loss_by_no_product_is_told():
    net = Cut(whole=False)
    net.shift = nn.Parameter(torch.zeros(4))
    x = torch.randn(9, 4)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x + net.shift), torch.arange(9) % 3))
    block = next(each for each in blocks_of(net) if each.name == "shift")
    for read in (Reading(recording).entries, Reading(recording).products):
        with pytest.raises(NotOnTapeError, match="by products alone"):
            read(block)


def test_parts_hold_every_number_of_the_whole_once_and_the_last_comes_first():
    reading, blocks = reading_of(Cut(whole=False))
    (product,) = reading.products(blocks["first"])
    (_, right), (_, left) = reading.parts(product.made)
    assert torch.equal(torch.cat([left, right], 1), torch.arange(54).reshape(9, 6))


def test_what_is_used_whole_is_not_parted():
    reading, blocks = reading_of(Cut(whole=True))
    assert reading.parts(reading.products(blocks["first"])[0].made) == []
    made = reading.products(blocks["head"])[0].made
    ((moved, places),) = reading.parts(made)  # as a whole to another place
    assert moved != made
    assert torch.equal(places.flatten().sort().values, torch.arange(places.numel()))


def test_what_lies_behind_is_read_up_to_a_limit(monkeypatch):
    reading, blocks = reading_of(Twice(False))
    (product,) = reading.products(blocks["head"])
    entries = reading.behind([product], {product.made: 1})
    assert entries.behind.position(product.made, entries.behind.unit) == 1
    assert entries.behind.position(product.made, entries.behind.sample) == 0
    monkeypatch.setattr(reading_module, "_MOST_READ", 0)
    with pytest.raises(NotOnTapeError, match="too many steps of time"):
        reading.behind([product], {product.made: 1})


def test_units_that_lead_to_one_another_have_nothing_behind_them_in_common():
    reading, blocks = reading_of(Twice(True))
    products = reading.products(blocks["layer"])
    with pytest.raises(NotOnTapeError, match="goes into itself"):
        reading.behind(products, {each.made: 1 for each in products})


def test_operations_are_of_one_kind_that_do_the_same():
    reading, _ = reading_of(Twice(False))
    kinds = [reading.kind(each) for each in reading.operations() if "tanh" in str(each.function)]
    assert len(kinds) == 2
    assert len(set(kinds)) == 1
    assert kinds[0][1] == (9, 4)
