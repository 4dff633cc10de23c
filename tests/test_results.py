import json

import pytest
import torch
from torch import nn

from lightning_polystep.results import fit_record, parameters_sha256, write_results
from tests.helpers.boring import BATCH, Boring, loader, polystep, trainer


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    run, module = trainer(tmp_path_factory.mktemp("run"), max_epochs=2), Boring(polystep)
    run.fit(module, loader())
    return run, module


def test_hash_sees_every_bit_of_values_names_and_buffers():
    module = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    seen = {parameters_sha256(module)}
    assert parameters_sha256(module) in seen
    with torch.no_grad():
        module[0].weight.view(torch.int32)[0, 0] ^= 1  # the last bit of one weight
    seen.add(parameters_sha256(module))
    module[1].running_mean[1] += 1
    seen.add(parameters_sha256(module))
    seen.add(parameters_sha256(nn.Sequential(*module, nn.Identity(), nn.Linear(1, 1))))
    seen.add(parameters_sha256(module.double()))
    assert len(seen) == 5


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_hash_takes_every_dtype_and_layout(dtype):
    module = nn.Conv2d(2, 3, 3).to(dtype)
    module.register_buffer("flag", torch.tensor(True))
    module.register_buffer("empty", torch.zeros(0))
    expected = parameters_sha256(module)
    assert parameters_sha256(module.to(memory_format=torch.channels_last)) == expected
    assert len(expected) == 64


def test_record_of_a_fit(fitted):
    run, module = fitted
    record = fit_record(run)
    progress = run.optimizers[0].progress
    assert record["steps"] == 16
    assert record["epochs"] == 2
    assert record["parameters_sha256"] == parameters_sha256(module)
    assert record["candidates"] == progress.candidates > 0
    assert record["samples_per_candidate"] == BATCH
    assert record["candidate_samples"] == BATCH * record["candidates"]
    assert record["skipped_batches"] == 0
    assert set(record["fit_metrics"]) >= {"loss", "val_loss", "polystep/step_norm"}
    assert {row["block"] for row in record["plan"]} == {"net.0", "net.3"}
    assert all(row["tier"] and row["rank"] >= 1 for row in record["plan"])


def test_seconds_by_verb_add_up_to_less_than_the_wall_clock(fitted):
    record = fit_record(fitted[0])
    assert list(record["seconds_by_verb"]) == ["observe", "propose", "score", "transport", "move"]
    assert all(seconds > 0 for seconds in record["seconds_by_verb"].values())
    assert 0.3 * record["wall_seconds"] < sum(record["seconds_by_verb"].values()) < record["wall_seconds"]


def test_packages_that_decide_the_result_are_named(fitted):
    packages = fit_record(fitted[0])["packages"]
    assert packages["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert {"lightning-polystep", "pytorch-lightning", "torchmetrics", "numba", "numpy"} <= set(packages)


@pytest.mark.parametrize("seed", [None, 7])
def test_the_seed_is_that_of_seed_everything(fitted, seed, monkeypatch):
    if seed is not None:
        monkeypatch.setenv("PL_GLOBAL_SEED", str(seed))
    assert fit_record(fitted[0])["seed"] == seed


def test_a_fit_by_gradients_has_a_record_as_well(tmp_path):
    run = trainer(tmp_path, strategy="auto")
    run.fit(Boring(lambda m: torch.optim.SGD(m.parameters(), lr=0.1)), loader(batches=2))
    record = fit_record(run)
    assert record["steps"] == 2
    assert "candidates" not in record


def test_two_optimizers_are_summed(tmp_path):
    class Two(Boring):
        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.step(lambda: self.loss(batch))

    module = Two(lambda m: [polystep(m.net[0]), polystep(m.net[3])])
    module.automatic_optimization = False
    run = trainer(tmp_path)
    run.fit(module, loader(batches=2))
    record = fit_record(run)
    assert record["candidates"] == sum(optimizer.progress.candidates for optimizer in run.optimizers)
    assert [row["block"] for row in record["plan"]] == ["net.0", "net.3"]
    assert record["samples_per_candidate"] == BATCH


def test_the_file_holds_the_record(tmp_path, fitted):
    record = fit_record(fitted[0])
    path = write_results(tmp_path / "new" / "folder", record)
    assert path == tmp_path / "new" / "folder" / "results.json"
    assert json.loads(path.read_text(encoding="utf-8")) == record
    write_results(tmp_path / "new" / "folder", {"steps": 1})
    assert json.loads(path.read_text(encoding="utf-8")) == {"steps": 1}
