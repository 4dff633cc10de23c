"""What is drawn is what the layers did on the first batch of the validation."""

import sys

import pytest
import pytorch_lightning as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

pytest.importorskip("matplotlib")

from lightning_polystep.callbacks import LayerPictures
from lightning_polystep.functional import lif
from lightning_polystep.layers import (
    LIF,
    ArgmaxAttention,
    HardMoE,
    Sign,
    Sliced,
    SlotArgmaxAttention,
    SpikeCount,
)

INPUTS = torch.rand(12, 4, generator=torch.Generator().manual_seed(0))


class Net(pl.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)

    def training_step(self, batch, batch_idx):
        return self(batch[0]).square().mean()

    def validation_step(self, batch, batch_idx):
        self(batch[0])

    def configure_optimizers(self):
        return None


def run(tmp_path, network, *, epochs=2, **options):
    """Fit, and return what was drawn and the callback."""
    drawn = {}

    class Notes(LayerPictures):
        def show(self, trainer, name, figure):
            drawn.setdefault(name, []).append(figure)
            super().show(trainer, name, figure)

    callback = Notes(**options)
    trainer = pl.Trainer(
        strategy="polystep",
        accelerator="cpu",
        logger=False,
        max_epochs=epochs,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    torch.manual_seed(0)
    loader = DataLoader(TensorDataset(INPUTS), batch_size=6)
    trainer.fit(Net(network), loader, loader)
    return drawn, callback, trainer


def spiking():
    return Sliced(nn.Linear(4, 5), LIF(0.9, 0.5, num_steps=6), nn.Linear(5, 3), LIF(0.8, 0.3), SpikeCount(), samples=4)


def test_spikes_rates_and_membranes(tmp_path):
    network = spiking()
    drawn, _, _ = run(tmp_path, network, epochs=1)
    assert {path.stem for path in (tmp_path / "pictures").glob("*.png")} == {"spikes", "rates", "membranes"}
    with torch.no_grad():
        current = network[0](INPUTS[:6])
        spikes = lif(current, network[1].beta, network[1].threshold, num_steps=6)
        both = lif(current, network[1].beta, network[1].threshold, num_steps=6, return_membrane=True)
    axes = drawn["spikes"][0].axes[0]
    assert axes.get_title() == f"network.1: {int(spikes[:, 0].sum()):,} spikes"
    assert f"mean {spikes.mean():.2f}" in drawn["rates"][0].axes[0].get_title()  # over slices of the batch
    traces = drawn["membranes"][0].axes[0].lines
    assert len(traces) == 5  # four neurons and the threshold
    for line, trace in zip(traces[:4], both.membrane[:, 0, :4].T, strict=True):
        torch.testing.assert_close(torch.as_tensor(line.get_ydata()), trace)


def test_flips_are_what_changes_between_validations(tmp_path):
    drawn, callback, trainer = run(tmp_path, nn.Sequential(nn.Linear(4, 5), Sign(), nn.Linear(5, 2)), epochs=3)
    (axes,) = drawn["flips"][-1].axes
    assert list(axes.lines[0].get_xdata()) == [4, 6]
    assert all(0 <= share <= 1 for share in axes.lines[0].get_ydata())
    callback._compare(99)  # nothing was heard since
    with torch.no_grad():
        linear = trainer.lightning_module.network[0]
        linear.weight.neg_()
        linear.bias.neg_()
    trainer.validate(trainer.lightning_module, DataLoader(TensorDataset(INPUTS), batch_size=6), verbose=False)
    before = callback._last["network.1"].clone()
    with torch.no_grad():
        linear.weight.neg_()
        linear.bias.neg_()
    trainer.validate(trainer.lightning_module, DataLoader(TensorDataset(INPUTS), batch_size=6), verbose=False)
    assert callback._shares["network.1"][-1] == 1.0
    assert not (callback._last["network.1"] == before).any()


class Attends(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.slots = ArgmaxAttention(4, 2), SlotArgmaxAttention(4, 3)
        self.mixture = HardMoE([nn.Linear(4, 2) for _ in range(3)], router=4)

    def forward(self, x):
        tokens = torch.stack([x, x.flip(-1), -x], 1)
        return self.mixture(self.slots(self.attention(tokens)).mean(1))


def test_loads_and_choices_are_counted(tmp_path):
    network = Attends()
    drawn, _, _ = run(tmp_path, network, epochs=1)
    assert set(drawn) == {"experts", "slots", "attention"}
    with torch.no_grad():
        tokens = torch.stack([INPUTS[:6], INPUTS[:6].flip(-1), -INPUTS[:6]], 1)
        network.attention.return_indices = network.slots.return_indices = network.mixture.return_routing = True
        attended = network.attention(tokens)
        gated = network.slots(attended.output)
        routing = network.mixture(gated.output.mean(1)).routing
    image = torch.as_tensor(drawn["attention"][0].axes[0].images[0].get_array())
    expected = torch.stack([(attended.indices == key).float().mean((0, 1)) for key in range(3)], 1)
    torch.testing.assert_close(image.double(), expected.double())
    for name, counts in (("experts", routing.load), ("slots", torch.bincount(gated.indices.flatten(), minlength=3))):
        assert [bar.get_height() for bar in drawn[name][0].axes[0].patches] == counts.tolist()


def test_only_the_named_layers_and_nothing_of_training(tmp_path):
    network = spiking()
    drawn, callback, _ = run(tmp_path, network, epochs=1, names=["network.3"])
    assert [axes.get_title().partition(":")[0] for axes in drawn["spikes"][0].axes] == ["network.3"]
    assert not callback._calls
    assert not any(layer._forward_hooks for layer in network.modules())


@pytest.mark.parametrize(
    ("make", "names", "message"),
    [
        (lambda: nn.Linear(4, 2), None, "no hard layer of this package"),
        (spiking, ["network.9"], "no hard layer 'network.9'; it has network.1, network.3"),
    ],
)
def test_nothing_to_draw_is_said_once(tmp_path, make, names, message):
    torch.manual_seed(0)  # of other first weights a layer may be silent, of which a warning tells
    with pytest.warns(UserWarning, match=message) as caught:
        run(tmp_path, make(), names=names)
    assert sum("Notes:" in str(warning.message) for warning in caught) == 1


def test_a_missing_matplotlib_is_said_once_and_the_run_goes_on(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.warns(UserWarning, match=r"no pictures, because .*lightning-polystep\[pictures\]"):
        _, _, trainer = run(tmp_path, spiking())
    assert trainer.global_step == 4


def test_options_are_checked():
    with pytest.raises(ValueError, match="membranes must be at least 1"):
        LayerPictures(membranes=0)
