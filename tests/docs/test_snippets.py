"""Short blocks of the other pages run, with what each takes for granted made here."""

import re
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch
from torch import nn

import lightning_polystep
from lightning_polystep.layers import LIF, SpikeCount

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCKS = re.compile(r"^```python\n(.*?)^```", flags=re.DOTALL | re.MULTILINE)


def spiking():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 6), LIF(0.9, 0.2, num_steps=5), nn.Linear(6, 2), LIF(0.9, 0.1), SpikeCount())
    loader = [(torch.randn(8, 4), torch.tensor([0, 1] * 4)) for _ in range(2)]
    return {"model": network, "loader": loader, "batch": loader[0][0], "criterion": nn.CrossEntropyLoss()}


PACKAGE = {name: getattr(lightning_polystep, name) for name in ("Engine", "PolyStep")} | {
    "lightning_polystep": lightning_polystep,
    "nn": nn,
    "torch": torch,
    "pl": pl,
}
# What each page takes for granted, and the packages that it needs.
PAGES = {
    "checkpoints": ({"module": None, "data": None}, ()),
    "exports": ({}, ("nir", "onnxruntime")),
    "metrics": (PACKAGE | spiking(), ()),
    "pictures": ({}, ("matplotlib",)),
    "policies": ({}, ()),
    "using": (PACKAGE | spiking(), ()),
}
# These run whole elsewhere: each is compared with what it prints, or beaten by a test of its subject.
ELSEWHERE = {"brevitas_to_finn", "snntorch_to_nir", "no_gradient", "ecosystem", "extending"}


def test_every_page_with_a_block_is_run_somewhere():
    with_blocks = {path.stem for path in DOCS.glob("*.md") if BLOCKS.search(path.read_text("utf-8"))}
    assert with_blocks == PAGES.keys() | ELSEWHERE


@pytest.mark.parametrize("page", PAGES)
def test_the_blocks_of_a_page_run(page, monkeypatch, tmp_path):
    given, packages = PAGES[page]
    for package in packages:
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    fits = []
    monkeypatch.setattr(pl.Trainer, "fit", lambda _trainer, *given, **options: fits.append((given, options)))
    names = {"__name__": "page", **given}
    for number, block in enumerate(BLOCKS.findall((DOCS / f"{page}.md").read_text("utf-8"))):
        exec(compile(block, f"{page}.md, block {number}", "exec"), names)
    assert len(fits) == (2 if page == "checkpoints" else 0)
