"""The audit: true gradients and no others, also of networks whose guards would hide some."""

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.exceptions import MisconfigurationException
from torch import nn

from datamodules import TensorImages
from lightning_polystep.audit import AuditTrainer, audit
from lightning_polystep.layers import ArgmaxAttention, Sign
from models import (
    BinaryMLP,
    Classifier,
    Int8MLP,
    IntegerMLP,
    MoENet,
    SlotAttentionNet,
    SpikingMLP,
    StaircaseMLP,
)


def loader():
    draw = torch.Generator().manual_seed(0)
    return TensorImages(torch.rand(64, 1, 4, 4, generator=draw), torch.arange(64) % 10).loader(64)


class Model(Classifier):
    def train_dataloader(self):
        return loader()


def with_gradient(network):
    trainer = AuditTrainer(logger=False, accelerator="cpu", devices=1, enable_checkpointing=False)
    found = trainer.audit(Model(network))
    return {row.name.removeprefix("network.") for row in found.rows if row.nonzero}, found


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: SpikingMLP((16, 8, 10)), set()),
        (lambda: StaircaseMLP((16, 8, 8, 10)), {"5.weight", "5.bias"}),
        # The weights are rounded, the input of the middle layer is not: its gradient reaches the first layer.
        (lambda: Int8MLP((16, 8, 8, 10)), {"1.weight", "1.bias", "3.bias", "5.weight", "5.bias"}),
        (lambda: IntegerMLP((16, 8, 8, 10)), {"5.bias"}),
        (lambda: BinaryMLP((16, 8, 8, 10)), {"6.bias"}),
        (lambda: MoENet((16, 8, 10), strict=True), set()),
    ],
    ids=["spiking", "staircase", "int8", "integer", "binary", "strict moe"],
)
def test_the_parameters_with_a_gradient(make, expected):
    names, found = with_gradient(make())
    assert names == expected
    assert found.nonzero_share <= found.share <= 1


def test_of_a_mixture_only_the_router_has_none():
    names, found = with_gradient(MoENet((16, 8, 10), num_experts=2))
    assert {row.name.removeprefix("network.") for row in found.rows} - names == {"3.router.weight", "3.router.bias"}


def test_slots_have_a_gradient_where_they_were_taken():
    names, found = with_gradient(SlotAttentionNet((16, 8, 10)))
    assert {row.name.removeprefix("network.") for row in found.rows} == names
    assert found.nonzero_share < 1


def test_attention_over_tokens_leaves_query_and_key_without():
    layer, tokens = ArgmaxAttention(8, 2), torch.randn(3, 5, 8)
    found = audit(layer, lambda: layer(tokens).square().sum())
    without = {row.name for row in found.rows if not row.nonzero}
    assert without == {"q_proj.weight", "q_proj.bias", "k_proj.weight", "k_proj.bias"}


def test_gradients_and_modes_stay_as_they_are():
    network = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    network[0].weight.grad = torch.ones(3, 4)
    network[1].bias.requires_grad_(False)
    with torch.no_grad():
        found = audit(network, lambda: network(torch.ones(5, 4)).square().sum())
        assert not torch.is_grad_enabled()
    assert [row.name for row in found.rows] == ["0.weight", "0.bias", "1.weight"]
    assert found.share == 1
    assert torch.equal(network[0].weight.grad, torch.ones(3, 4))
    assert network[1].weight.grad is None


def test_a_loss_without_any_gradient_is_no_error():
    network = nn.Sequential(nn.Linear(4, 3), Sign())
    assert audit(network, lambda: network(torch.ones(5, 4)).sum()).share == 0
    assert audit(nn.Identity(), lambda: torch.ones(())).share == 0


def test_a_loss_in_a_dictionary():
    class Dictionary(Model):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx)}

    trainer = AuditTrainer(logger=False, accelerator="cpu", devices=1, enable_checkpointing=False)
    assert trainer.audit(Dictionary(nn.Sequential(nn.Flatten(), nn.Linear(16, 10)))).share == 1
    assert isinstance(trainer, pl.Trainer)


def test_a_loader_without_a_batch_is_named():
    class Empty(Model):
        def train_dataloader(self):
            return []

    trainer = AuditTrainer(logger=False, accelerator="cpu", devices=1, enable_checkpointing=False)
    with pytest.raises(MisconfigurationException, match="no batch to audit"):
        trainer.audit(Empty(nn.Sequential(nn.Flatten(), nn.Linear(16, 10))))


def test_the_table_names_every_parameter(capsys):
    with_gradient(StaircaseMLP((16, 8, 10)))
    text = " ".join(capsys.readouterr().out.split())
    for words in ("network.1.weight", "8 x 16", "none", "yes", "of 226 numbers are in a parameter with a gradient"):
        assert words in text
