"""One script, with ``pytorch_lightning`` or with ``lightning.pytorch``, trains to the same bits."""

import ast
import importlib
import os
import subprocess
import sys
from importlib.machinery import PathFinder
from pathlib import Path
from types import ModuleType

import pytest
import pytorch_lightning as pl
from lightning_fabric.strategies.registry import _StrategyRegistry

from lightning_polystep import PolyStepStrategy, namespaces

PACKAGE = Path(namespaces.__file__).parent
needs_both = pytest.mark.skipif(
    PathFinder.find_spec("lightning") is None, reason="needs the package lightning: pip install 'lightning>=2.6.4'"
)

SCRIPT = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_polystep.callbacks import LayerMetrics
from lightning_polystep.layers import LIF, SpikeCount
from lightning_polystep.results import parameters_sha256


class Spiking(pl.LightningModule):
    def __init__(self, by_hand):
        super().__init__()
        self.automatic_optimization = not by_hand
        self.network = nn.Sequential(nn.Linear(4, 6), LIF(0.9, num_steps=5), nn.Linear(6, 2), LIF(0.9), SpikeCount())
        self.criterion = nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.network(batch[0]), batch[1])
        if not self.automatic_optimization:
            self.manual_backward(loss)
            self.optimizers().step()
        self.log("loss", loss)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.criterion(self.network(batch[0]), batch[1]))

    def configure_optimizers(self):
        optimizer = lightning_polystep.PolyStep(self.parameters(), lr=0.1)
        return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=3)]


for by_hand in (False, True):
    pl.seed_everything(0, verbose=False)
    x = torch.randn(64, 4)
    data = TensorDataset(x, (x.sum(1) > 0).long())
    trainer = pl.Trainer(
        strategy="polystep",
        accelerator="cpu",
        max_epochs=3,
        default_root_dir=FOLDER,
        logger=pl.loggers.CSVLogger(FOLDER),
        callbacks=[LayerMetrics(), pl.callbacks.ModelCheckpoint(save_last=True, monitor="val/loss")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    module = Spiking(by_hand)
    before = parameters_sha256(module)
    trainer.fit(module, DataLoader(data, batch_size=16, shuffle=True), DataLoader(data, batch_size=64))
    assert parameters_sha256(module) != before
    print(by_hand, parameters_sha256(module))
print("loaded", *sorted({"pytorch_lightning", "lightning.pytorch"} & set(sys.modules)))
"""

IMPORTS = {
    "pytorch_lightning": ["import pytorch_lightning as pl"],
    "lightning.pytorch": ["import lightning.pytorch as pl"],
    "lightning": ["import lightning as L", "import lightning.pytorch as pl", "assert pl.Trainer is L.Trainer"],
}


def run(code, folder):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    path = folder / "script.py"
    path.write_text(f"import sys\nFOLDER = {str(folder)!r}\n{code}", encoding="utf-8")
    command = [sys.executable, str(path)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=200, check=False, env=environment, cwd=folder
    )


def trained(imports, folder):
    folder.mkdir()
    done = run("\n".join(imports) + SCRIPT, folder)
    assert done.returncode == 0, done.stderr
    return [line for line in done.stdout.splitlines() if line.startswith(("True ", "False ", "loaded "))]


@pytest.mark.slow
@needs_both
def test_both_packages_train_to_the_same_parameters(tmp_path):
    ours = ["import lightning_polystep"]
    *hashes, loaded = trained([*IMPORTS["pytorch_lightning"], *ours], tmp_path / "0")
    assert (len(hashes), loaded) == (2, "loaded pytorch_lightning")
    orders = [ours + IMPORTS["lightning.pytorch"], IMPORTS["lightning"] + ours]
    for number, order in enumerate(orders, 1):
        *again, loaded = trained(order, tmp_path / str(number))
        assert again == hashes
        assert loaded == "loaded lightning.pytorch"  # one of the two is enough


@needs_both
def test_one_process_works_with_one_of_them_and_says_so(tmp_path):
    mine, other = "lightning.pytorch", "pytorch_lightning"
    code = f"""
import {other} as other, {mine} as mine, lightning_polystep
options = dict(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
print(mine.Trainer(strategy="polystep", **options).strategy)
try:
    other.Trainer(strategy="polystep", **options)
except ValueError as error:
    print(error)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    strategy, refusal = done.stdout.splitlines()
    assert strategy == f"PolyStepStrategy(for {mine}.Trainer)"
    assert refusal == namespaces.TWO_NAMESPACES.format(asking=other, chosen=mine)


def test_the_two_lists_of_names_are_the_same():
    """Without the other package nothing else would tell that a name is missing in its list."""
    for file, count in (("host.py", 30), ("host_cli.py", 2)):
        [branch] = [node for node in ast.parse((PACKAGE / file).read_text("utf-8")).body if isinstance(node, ast.If)]
        first, second = map(ast.unparse, (ast.Module(part, []) for part in (branch.body, branch.orelse)))
        assert first.count("import") >= count // 2
        renamed = first.replace("lightning_fabric", "lightning.fabric")
        assert renamed.replace("pytorch_lightning", "lightning.pytorch") == second


def imported_by(file):
    for node in ast.walk(ast.parse(file.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


def test_no_other_module_imports_lightning():
    lightning = {"pytorch_lightning", "lightning_fabric", "lightning"}
    importing = {file.name for file in PACKAGE.rglob("*.py") if lightning & set(imported_by(file))}
    assert importing == {"host.py", "host_cli.py"}


def test_whoever_steps_without_lightning_loads_none(tmp_path):
    code = """
import torch, lightning_polystep, lightning_polystep.layers, lightning_polystep.exports, lightning_polystep.interop
model = torch.nn.Linear(3, 2)
engine = lightning_polystep.Engine(model, lightning_polystep.PolyStep(model.parameters()))
x, y = torch.randn(8, 3), torch.zeros(8, dtype=torch.long)
first = [engine.step(lambda: torch.nn.functional.cross_entropy(model(x), y)).item() for _ in range(4)]
assert first[-1] < first[0]
assert not {"pytorch_lightning", "lightning", "lightning_fabric"} & set(sys.modules)
"""
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr


# --- registering ------------------------------------------------------------------------------------------------------


@pytest.fixture
def other_registry(monkeypatch):
    """The registry of ``lightning.pytorch``, which need not be installed."""
    strategies = ModuleType("lightning.pytorch.strategies")
    strategies.StrategyRegistry = _StrategyRegistry()
    for name, module in {
        "lightning": ModuleType("lightning"),
        "lightning.pytorch": ModuleType("lightning.pytorch"),
        "lightning.pytorch.strategies": strategies,
    }.items():
        monkeypatch.setitem(sys.modules, name, module)
    return strategies.StrategyRegistry


def test_the_trainer_of_the_other_package_is_told_why_not(other_registry):
    namespaces.register()
    with pytest.raises(ValueError, match=r"comes from lightning\.pytorch, but .* works with pytorch_lightning"):
        other_registry.get("polystep")  # what that Trainer does


def test_registering_again_changes_nothing(other_registry):
    namespaces.register()
    before = dict(other_registry)
    namespaces.register()
    assert dict(other_registry) == before
    assert list(before) == list(namespaces.NAMES)


def test_a_package_that_is_not_loaded_stays_so(monkeypatch):
    monkeypatch.delitem(sys.modules, "lightning.pytorch.strategies", raising=False)
    before = set(sys.modules)
    namespaces.register()
    assert set(sys.modules) == before
    assert isinstance(pl.strategies.StrategyRegistry.get("polystep"), PolyStepStrategy)


MADE_UP = """
class Registry(dict):
    def register(self, name, strategy, description=None, **options):
        self[name] = strategy
StrategyRegistry = Registry()
"""


@pytest.mark.parametrize(
    ("first", "how"),
    [("ours", "import lightning.pytorch.strategies"), ("the other", "from lightning.pytorch import strategies")],
)
def test_names_are_registered_whatever_the_order_of_imports(tmp_path, first, how):
    """The other package is made up, because it need not be installed."""
    package = tmp_path / "lightning" / "pytorch"
    package.mkdir(parents=True)
    (tmp_path / "lightning" / "__init__.py").touch()
    (package / "__init__.py").touch()
    (package / "strategies.py").write_text(MADE_UP, encoding="utf-8")
    imports = ["import lightning_polystep", how]
    code = "\n".join(
        [
            f"sys.path.insert(0, {str(tmp_path)!r})",
            *(imports if first == "ours" else reversed(imports)),
            "registry = sys.modules['lightning.pytorch.strategies'].StrategyRegistry",
            "assert 'polystep' in registry and 'polystep_ddp' in registry, registry",
            "waiting = [each.name for each in sys.meta_path if 'AfterImport' in type(each).__name__]",
            "assert waiting == ['pytorch_lightning.strategies'], waiting",
            "import pytorch_lightning as pl",
            "assert type(pl.strategies.StrategyRegistry.get('polystep')).__name__ == 'PolyStepStrategy'",
            "try:",
            "    registry['polystep']()",
            "except ValueError as error:",
            "    print(error)",
        ]
    )
    done = run(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert "comes from lightning.pytorch" in done.stdout


def test_a_module_that_is_not_there_is_still_not_there():
    finder = namespaces._AfterImport("email.not_there", lambda module: pytest.fail("nothing was imported"))
    sys.meta_path.insert(0, finder)
    with pytest.raises(ModuleNotFoundError, match="not_there"):
        importlib.import_module("email.not_there")
    assert finder not in sys.meta_path
