import importlib
import subprocess
import sys

import pytest
import pytorch_lightning as pl
from pytorch_lightning.strategies import StrategyRegistry

import lightning_polystep
from lightning_polystep import PolyStepStrategy
from lightning_polystep.__about__ import __version__
from tests.helpers.boring import Boring, loader, polystep, trainer


@pytest.mark.parametrize("name", ["polystep", "PolyStep", "POLYSTEP"])
def test_importing_registers_the_name(tmp_path, name):
    run = trainer(tmp_path, strategy=name)
    assert type(run.strategy) is PolyStepStrategy
    run.fit(Boring(polystep), loader(batches=2))
    assert run.global_step == 2


def test_the_registry_describes_it():
    assert "polystep" in StrategyRegistry.available_strategies()
    assert "forward passes" in StrategyRegistry["polystep"]["description"]


def test_importing_again_is_safe():
    before = dict(StrategyRegistry)
    importlib.reload(lightning_polystep)
    assert dict(StrategyRegistry) == before
    PolyStepStrategy.register_strategies(StrategyRegistry)
    assert dict(StrategyRegistry) == before
    assert isinstance(pl.Trainer(strategy="polystep", accelerator="cpu", logger=False).strategy, PolyStepStrategy)


def test_public_names():
    assert lightning_polystep.__version__ == __version__
    assert {"PolyStep", "PolyStepStrategy", "Engine"} <= set(lightning_polystep.__all__)
    assert all(hasattr(lightning_polystep, name) for name in lightning_polystep.__all__)


def test_a_name_needs_the_import_and_the_import_is_silent():
    code = (
        "import pytorch_lightning as pl, sys\n"
        "try:\n"
        "    pl.Trainer(strategy='polystep', accelerator='cpu', logger=False)\n"
        "except ValueError as error:\n"
        "    assert 'polystep' in str(error)\n"
        "else:\n"
        "    raise SystemExit('known without an import')\n"
        "before = set(sys.modules)\n"
        "import lightning_polystep\n"
        "print(len(sys.modules['pytorch_lightning'].strategies.StrategyRegistry.available_strategies()))\n"
        "assert 'lightning' not in sys.modules, 'imports the other package'\n"
        "assert not {'torchvision', 'sklearn', 'snntorch', 'brevitas', 'matplotlib'} & (set(sys.modules) - before)\n"
    )
    command = [sys.executable, "-W", "error:::lightning_polystep", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().isdigit()
