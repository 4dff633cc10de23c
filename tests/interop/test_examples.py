"""The examples of docs/ecosystem.md run as they are printed, and train."""

import re
import warnings
from pathlib import Path

import pytest
import pytorch_lightning as pl
import torch

PAGE = Path(__file__).resolve().parents[2] / "docs" / "ecosystem.md"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)


@pytest.mark.parametrize(("library", "block"), [("snntorch", BLOCKS[0]), ("brevitas", BLOCKS[1])])
@pytest.mark.filterwarnings("ignore:Found .* in eval mode at the start of training")
def test_it_runs_and_the_loss_falls(library, block, monkeypatch, tmp_path):
    pytest.importorskip(library, reason=f"{library} is not installed")
    monkeypatch.chdir(tmp_path)
    losses = []
    monkeypatch.setattr(
        pl.LightningModule, "on_train_batch_end", lambda _self, outputs, *_args: losses.append(outputs["loss"])
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r".*returned Adam", category=UserWarning)
        exec(compile(block, str(PAGE), "exec"), {"__name__": "example"})
    assert len(losses) == 20
    assert torch.stack(losses[-4:]).mean() < 0.8 * torch.stack(losses[:4]).mean()


def test_the_imports_exist():
    exec(BLOCKS[2], {})
