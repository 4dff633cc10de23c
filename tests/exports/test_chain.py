import pytest
from torch import nn

from lightning_polystep.exports.chain import chain_of, network_of
from lightning_polystep.interop import ConversionError
from lightning_polystep.layers import LIF, OverTime, Sliced, SpikeCount


def test_names_are_those_of_the_state_dict():
    network = Sliced(nn.Linear(2, 2), nn.Sequential(OverTime(nn.Linear(2, 2)), LIF(), SpikeCount()), samples=3)
    links = chain_of(network)
    assert [link.name for link in links] == ["0", "1.0.layer", "1.1", "1.2"]
    assert [link.every_step for link in links] == [False, True, False, False]
    assert all(link.layer is network.get_submodule(link.name) for link in links)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) + x


class OwnRow(nn.Sequential):
    def forward(self, input):
        return super().forward(input) + 1


@pytest.mark.parametrize("part", [Own(), OwnRow(nn.Linear(2, 2))])
def test_a_forward_of_its_own_is_refused_by_name(part):
    with pytest.raises(ConversionError, match=rf"'1' \({type(part).__name__}\) has a forward of its own"):
        chain_of(nn.Sequential(nn.Identity(), part))


def test_the_network_of_a_module_is_found_or_named():
    module = nn.ModuleDict({"first": nn.Sequential(), "second": nn.Sequential(nn.Identity())})
    with pytest.raises(ConversionError, match=r"2 parts that are an nn.Sequential: name the one"):
        network_of(module)
    assert network_of(module, "second")[1] is module["second"]
    with pytest.raises(ConversionError, match="no part 'third'"):
        network_of(module, "third")
    row = nn.Sequential(nn.Identity())
    assert network_of(row) == ("", row)
