"""Networks of Brevitas."""

from __future__ import annotations

from collections.abc import Callable

import brevitas.nn as qnn
import torch.nn.functional as F
from brevitas_examples.bnn_pynq.models.FC import FC
from brevitas_examples.bnn_pynq.models.losses import SqrHingeLoss
from torch import Tensor, nn

from benchmarks.general_networks import Case


class QuantLeNet(nn.Module):
    """LeNet as in the tutorials of Brevitas."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.quant_inp = qnn.QuantIdentity(bit_width=bits)
        self.conv1 = qnn.QuantConv2d(1, 6, 5, bias=True, weight_bit_width=bits)
        self.relu1 = qnn.QuantReLU(bit_width=bits)
        self.conv2 = qnn.QuantConv2d(6, 16, 5, bias=True, weight_bit_width=bits)
        self.relu2 = qnn.QuantReLU(bit_width=bits)
        self.fc1 = qnn.QuantLinear(16 * 4 * 4, 120, bias=True, weight_bit_width=bits)
        self.relu3 = qnn.QuantReLU(bit_width=bits)
        self.fc2 = qnn.QuantLinear(120, 84, bias=True, weight_bit_width=bits)
        self.relu4 = qnn.QuantReLU(bit_width=bits)
        self.fc3 = qnn.QuantLinear(84, 10, bias=True, weight_bit_width=bits)

    def forward(self, x: Tensor) -> Tensor:
        """Return scores."""
        out = self.quant_inp(x)
        out = F.max_pool2d(self.relu1(self.conv1(out)), 2)
        out = F.max_pool2d(self.relu2(self.conv2(out)), 2)
        out = out.reshape(out.shape[0], -1)
        out = self.relu3(self.fc1(out))
        out = self.relu4(self.fc2(out))
        scores: Tensor = self.fc3(out)
        return scores


def lenet4() -> Case:
    """Four bits everywhere."""
    net = QuantLeNet(4)
    return Case(net, lambda x, y: F.cross_entropy(net(x), y), lambda x: net(x).argmax(-1))


def tfc() -> Case:
    """TFC of BNN-PYNQ, one bit everywhere, with the loss of its authors."""
    net = FC(10, weight_bit_width=1, act_bit_width=1, in_bit_width=1, in_channels=1, out_features=[64, 64, 64])
    criterion = SqrHingeLoss()

    def loss(x: Tensor, targets: Tensor) -> Tensor:
        value: Tensor = criterion(net(x), 2.0 * F.one_hot(targets, 10) - 1.0)
        return value

    return Case(net, loss, lambda x: net(x).argmax(-1))


CASES: dict[str, Callable[[], Case]] = {"lenet4": lenet4, "tfc": tfc}
