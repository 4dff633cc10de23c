"""Names under which what is learned of layers is found again."""

import torch
from torch import nn
from torch.nn import functional as F

from lightning_polystep.scoring.naming import Naming
from lightning_polystep.scoring.reading import Reading
from lightning_polystep.tape import product_of
from tests.helpers.tapes import blocks_of, record


class Twice(nn.Module):
    """A layer that is applied to what it has made before."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).tanh()).tanh())


class Turned(nn.Module):
    """Weights that are made from a parameter, and some that are made from none."""

    def __init__(self):
        super().__init__()
        self.raw, self.fixed, self.head = nn.Parameter(torch.randn(4, 5)), torch.randn(5, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head((x @ (2 * self.raw).sign()).tanh() @ self.fixed)


def naming_of(net):
    torch.manual_seed(0)
    x = torch.randn(9, 4)
    recording, _, _ = record(net, lambda: F.cross_entropy(net(x), torch.arange(9) % 3))
    recording.names = {id(parameter): name for name, parameter in net.named_parameters()}
    return Naming(recording), Reading(recording), {block.name: block for block in blocks_of(net)}


def test_weights_go_by_the_parameter_that_they_are_made_of():
    naming, reading, blocks = naming_of(Turned())
    (product,) = reading.products(blocks["head"])
    assert naming.of_weights(product.weight) == "head.weight"
    made = next(each for each in reading.operations() if "sign" in str(each.function)).outputs[0]
    assert naming.of_weights(made) == "raw"
    assert naming.of_weights(product.inputs) == "raw"


def test_weights_of_no_parameter_go_by_their_place():
    naming, _, _ = naming_of(Turned())
    tape = naming.recording.taken()
    fixed = next(index for index, value in enumerate(tape.values) if value.tensor.shape == (5, 5))
    assert naming.of_weights(fixed) == f"value {fixed}"


def test_a_mirror_is_shared_and_kept_by_name_and_shape():
    naming, reading, blocks = naming_of(Twice())
    first, second = reading.products(blocks["layer"])
    mirror = naming.mirror(first)
    assert mirror.name == "layer.weight, 4 by 4"
    assert naming.mirror(second).memory is mirror.memory
    assert naming.recording.learned["mirrors of layer.weight, 4 by 4"] is mirror.memory


def test_a_layer_that_comes_again_behind_itself_has_a_memory_for_each_time():
    naming, reading, blocks = naming_of(Twice())
    kept, of_layer = [], {each.made for each in reading.products(blocks["layer"])}
    as_taken = [product_of(naming.recording.taken(), each) for each in reading.operations()]
    for product in (each for each in as_taken if each is not None and each.made in of_layer):
        kept.append(naming.reaches(reading.behind([product], {product.made: 1})))
        assert naming.reaches(reading.behind([product], {product.made: 1})) is kept[-1]
    assert kept[0] is not kept[1]
    assert all(name.startswith("reaches of layer.weight for value ") for name in naming.recording.learned)
    (head,) = (each for each in as_taken if each is not None and each.made not in of_layer)
    memory = naming.reaches(reading.behind([head], {head.made: 1}))
    assert naming.recording.learned["reaches of head.weight, 3"] is memory
