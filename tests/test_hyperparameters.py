"""Transports and schedules in checkpoints: names and numbers, nothing that runs code when it is loaded."""

import io
import math
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch

from lightning_polystep.hyperparameters import described, restored
from lightning_polystep.schedules import Constant, Cosine, Exponential, Linear
from lightning_polystep.transport import KLRelaxed, Sample, Sinkhorn, Softmax, softmax_transport
from lightning_polystep.transport.protocol import Transport, Weights

TRANSPORTS = [
    Softmax(),
    Sample(),
    Sinkhorn(),
    Sinkhorn(columns=(0.25, 0.75), tolerance=1e-3, iterations=7),
    KLRelaxed(tau=0.5),
    KLRelaxed(tau=math.inf, columns=[0.5, 0.5]),
]
SCHEDULES = [Constant(2.0), Linear(2.0, 0.5, 10), Cosine(2.0, 0.5, 10), Exponential(2.0, 0.5, 10)]


@dataclass(frozen=True)
class Homemade(Transport):
    name: ClassVar[str] = "homemade"
    power: float = 2.0

    def weigh(self, costs, epsilon, draw=None):
        return Weights(softmax_transport(costs**self.power, epsilon), costs.new_zeros(()))


def through_a_file(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("transport", [*TRANSPORTS, "softmax", "kl"], ids=str)
@pytest.mark.parametrize("epsilon", [*SCHEDULES, 2.0], ids=str)
def test_groups_come_back_as_they_were_from_a_file_of_names_and_numbers(transport, epsilon):
    group = {"lr": 0.1, "params": [0, 1], "transport": transport, "epsilon": epsilon}
    before = dict(group)
    loaded = through_a_file(described(group))
    assert group == before
    assert restored(loaded, {"transport": "softmax", "epsilon": 1.0}) == group


def test_groups_without_such_objects_are_left_alone():
    group = {"lr": 0.1, "epsilon": 2.0, "transport": "softmax", "params": [0]}
    assert described(group) == restored(group, {}) == group
    assert restored({"lr": 0.1}, {}) == {"lr": 0.1}


def test_a_kind_of_the_users_own_is_taken_from_the_optimizer_that_loads():
    saved = through_a_file(described({"transport": Homemade(power=3.0)}))
    assert saved == {"transport": {"name": "homemade", "power": 3.0}}
    assert restored(saved, {"transport": Homemade()}) == {"transport": Homemade(power=3.0)}
    with pytest.raises(ValueError, match="transport is 'homemade', which is none of softmax, sinkhorn, kl, sample"):
        restored(saved, {"transport": "softmax"})


@pytest.mark.parametrize(
    ("saved", "message"),
    [
        ({"transport": {"name": "os.system"}}, "transport is 'os.system', which is none of"),
        ({"transport": {}}, "transport is None, which is none of"),
        ({"epsilon": {"name": "softmax"}}, "epsilon is 'softmax', which is none of constant, linear"),
        ({"transport": {"name": "kl", "warmth": 1.0}}, r"'kl' has settings that KLRelaxed does not take: \{'warmth'"),
        ({"transport": {"name": "kl", "tau": -1.0}}, r"KLRelaxed\(tau=-1.0\): the price must be at least 0"),
        ({"epsilon": {"name": "linear", "start": 1.0}}, "'linear' has settings that Linear does not take"),
    ],
)
def test_what_cannot_be_restored_is_named(saved, message):
    with pytest.raises(ValueError, match=message):
        restored(saved, {"transport": "softmax", "epsilon": 2.0})
