"""The README's code runs, what it links to is there, and its figures are those of docs/results.md."""

import re
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

import lightning_polystep
from tests.helpers.boring import FEATURES, Boring, loader

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| `\w+` \|.*$", README, flags=re.MULTILINE)
TABLE = [[cell.strip() for cell in row[1:-1].split("|")] for row in ROWS]
PAGES = ["README.md", *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_to_a_file_leads_to_one(page):
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    links = {link for link in re.findall(r"\]\(([^)\s#]+)[^)\s]*\)", text) if "://" not in link}
    missing = [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
    assert missing == []


def test_every_configuration_that_it_names_is_there():
    named = [*re.findall(r"configs/(\w+)\.yaml", README), *(row[0].strip("`") for row in TABLE)]
    assert len(named) > len(TABLE) > 5
    assert {name for name in named if name != "NAME" and not (ROOT / "configs" / f"{name}.yaml").exists()} == set()


def test_the_figures_are_those_of_the_page_of_results():
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    for name, _, accuracy, adam, seconds in TABLE:
        [row] = [line for line in page.splitlines() if f"configs/{name.strip('`')}.yaml" in line]
        for figure in filter(None, (*accuracy.split(", "), adam, seconds)):
            assert figure in row


def test_the_code_of_the_three_ways_runs(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    torch.manual_seed(0)
    model = nn.Linear(FEATURES, 2)
    names = {
        "MyLightningModule": lambda: Boring(lambda module: lightning_polystep.PolyStep(module.parameters(), lr=0.1)),
        "train_loader": loader(batches=2),
        "model": model,
        "criterion": nn.CrossEntropyLoss(),
    }
    with_a_trainer, options, plain = blocks("python")
    exec(with_a_trainer, names)
    assert names["trainer"].global_step == 20
    exec(options, names | {"MyLightningModule": Boring})
    before = model.weight.clone()
    exec(plain, names)
    assert not torch.equal(before, model.weight)
    assert torch.isfinite(names["loss"])


def test_the_file_names_what_there_is():
    [text] = blocks("yaml")
    settings = yaml.safe_load(text)
    assert settings["trainer"] == {"strategy": "polystep"}
    package, name = settings["optimizer"]["class_path"].split(".")
    assert getattr(__import__(package), name)([nn.Parameter(torch.zeros(2))], **settings["optimizer"]["init_args"])
