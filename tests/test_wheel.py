"""The built wheel, installed outside the repository in a fresh environment, trains; its metadata say what it needs."""

import ast
import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

import pytest
from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "lightning_polystep"
BUILT = "hatchling.build" in (ROOT / "pyproject.toml").read_text("utf-8") and find_spec("hatchling") is not None
pytestmark = pytest.mark.skipif(not BUILT, reason="needs hatchling, which builds the wheel")

# Modules that the package imports at once, by the names under which they are installed.
MODULES = {"yaml": "pyyaml"}

SCRIPT = """
import pytorch_lightning as pl
import torch
from torch.utils.data import DataLoader, TensorDataset

import lightning_polystep
from lightning_polystep.layers import LIF, SpikeCount


class Spiking(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.network = torch.nn.Sequential(torch.nn.Linear(4, 2), LIF(0.9, num_steps=5), SpikeCount())
        self.criterion = torch.nn.CrossEntropyLoss()

    def training_step(self, batch, batch_idx):
        loss = self.criterion(self.network(batch[0]), batch[1])
        self.log("train/loss", loss, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        pass


class Points(pl.LightningDataModule):
    def train_dataloader(self):
        x = torch.randn(128, 4, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x, (x.sum(1) > 0).long()), batch_size=32)
"""

CONFIG = """
seed_everything: 0
trainer:
  strategy: polystep
  accelerator: cpu
  max_epochs: 8
  enable_progress_bar: false
  logger: {class_path: pytorch_lightning.loggers.CSVLogger, init_args: {save_dir: runs, name: points}}
model: mine.Spiking
data: mine.Points
optimizer: {class_path: lightning_polystep.PolyStep, init_args: {lr: 0.1}}
"""


def call(*command, cwd):
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=250, cwd=cwd, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Wheel and sdist, as a release has them."""
    folder = tmp_path_factory.mktemp("dist")
    call(sys.executable, "-m", "hatchling", "build", "-d", folder, cwd=ROOT)
    [wheel], [sdist] = folder.glob("*.whl"), folder.glob("*.tar.gz")
    return wheel, sdist


@pytest.fixture(scope="module")
def told(built):
    """The metadata of the wheel."""
    with zipfile.ZipFile(built[0]) as wheel:
        [name] = [each for each in wheel.namelist() if each.endswith(".dist-info/METADATA")]
        return metadata.PathDistribution(zipfile.Path(wheel, f"{Path(name).parent}/")).metadata


@pytest.mark.slow
def test_a_fresh_environment_trains_with_the_wheel(built, tmp_path):
    environment, work = tmp_path / "environment", tmp_path / "work"
    work.mkdir()
    call(sys.executable, "-m", "venv", "--without-pip", environment, cwd=tmp_path)
    python = environment / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    call(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", built[0], cwd=work
    )
    # What it depends on is taken from here, because torch alone takes minutes. Files .pth there are not followed, so
    # that an editable installation of this repository is not found.
    where = sysconfig.get_path("purelib", vars={"base": str(environment), "platbase": str(environment)})
    (Path(where) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")
    (work / "mine.py").write_text(SCRIPT, encoding="utf-8")
    (work / "config.yaml").write_text(CONFIG, encoding="utf-8")
    place = call(python, "-c", "import lightning_polystep; print(lightning_polystep.__file__)", cwd=work)
    assert Path(place.strip()).is_relative_to(where)
    call(python, "-m", "lightning_polystep", "fit", "--config", "config.yaml", cwd=work)
    run = work / "runs" / "points" / "version_0"
    results = json.loads((run / "results.json").read_text("utf-8"))
    assert len(results["parameters_sha256"]) == 64
    header, *rows = [line.split(",") for line in (run / "metrics.csv").read_text("utf-8").splitlines()]
    losses = [float(row[header.index("train/loss")]) for row in rows if row[header.index("train/loss")]]
    assert losses[-1] < 0.7 * losses[0]


def test_the_wheel_holds_the_package_and_nothing_else(built):
    with zipfile.ZipFile(built[0]) as wheel:
        names = set(wheel.namelist())
    packed = {name for name in names if ".dist-info/" not in name}
    kept = {path.relative_to(ROOT).as_posix() for path in PACKAGE.rglob("*") if path.is_file()}
    assert packed == {name for name in kept if "__pycache__" not in name}
    assert "lightning_polystep/py.typed" in packed
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_sdist_holds_what_the_tests_and_examples_need(built):
    with tarfile.open(built[1]) as sdist:
        tops = {Path(name).parts[1] for name in sdist.getnames()}
    needed = {"LICENSE", "README.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "conftest.py"}
    assert needed | {"lightning_polystep", "models", "datamodules", "configs", "tests", "docs", "notebooks"} <= tops
    assert not {".ci", "runs", "data", "lightning_logs", ".venv"} & tops


def test_the_metadata_say_which_versions(told):
    python = SpecifierSet(told["Requires-Python"])
    assert [f"3.{minor}" in python for minor in (10, 11, 12, 13)] == [False, True, True, True]
    assert told["License-Expression"] == "Apache-2.0"
    [lightning] = [each for each in map(Requirement, told.get_all("Requires-Dist")) if each.name == "pytorch-lightning"]
    taken = {version: version in lightning.specifier for version in ("2.5.6", "2.6.2", "2.6.3", "2.6.4", "2.7.0")}
    assert [version for version, allowed in taken.items() if allowed] == ["2.6.4"]


def test_what_is_installed_here_satisfies_them(told):
    wanted = [Requirement(each) for each in told.get_all("Requires-Dist")]
    no_extra = {**default_environment(), "extra": ""}
    base = [each for each in wanted if each.marker is None or each.marker.evaluate(no_extra)]
    assert len(base) >= 8
    unmet = [str(each) for each in base if not each.specifier.contains(metadata.version(each.name), prereleases=True)]
    assert not unmet


def test_they_name_every_package_that_is_imported_at_once(told):
    needed = {Requirement(each).name for each in told.get_all("Requires-Dist") if "extra ==" not in each}
    # numba asks for exactly one version of llvmlite; triton comes with torch, where it exists.
    others = {"lightning_polystep", "llvmlite", "triton", *sys.stdlib_module_names}
    found = set()
    for path in PACKAGE.rglob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                found.add(str(node.module).split(".")[0])
    assert {MODULES.get(name, name.replace("_", "-")) for name in found - others} <= needed
