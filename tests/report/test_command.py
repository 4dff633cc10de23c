"""The command on a real run, and its page in a real browser."""

import shutil
import subprocess
import sys

import pytest
import yaml

pytest.importorskip("matplotlib")

from lightning_polystep.cli import main
from lightning_polystep.report import report
from tests.report.runs import write_run

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def reported(*arguments):
    with pytest.raises(SystemExit) as stopped:
        main(["report", *map(str, arguments)])
    return stopped.value.code


def test_a_run_of_the_command_line_becomes_a_page(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    drawing = ["LayerPictures", "StepPictures", "LayerMetrics"]
    settings = {
        "seed_everything": 0,
        "trainer": {
            "strategy": {"class_path": "lightning_polystep.PolyStepStrategy", "init_args": {"show_plan": False}},
            "accelerator": "cpu",
            "devices": 1,
            "max_epochs": 2,
            "log_every_n_steps": 1,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "logger": {
                "class_path": "pytorch_lightning.loggers.CSVLogger",
                "init_args": {"save_dir": str(tmp_path), "name": "runs"},
            },
            "callbacks": [{"class_path": f"lightning_polystep.callbacks.{name}"} for name in drawing],
        },
        "model": {
            "class_path": "models.Classifier",
            "init_args": {
                "network": {"class_path": "models.SpikingMLP", "init_args": {"sizes": [64, 8, 10], "num_steps": 4}}
            },
        },
        "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 512}},
        "optimizer": {"class_path": "lightning_polystep.PolyStep", "init_args": {"lr": 0.3, "rank": 4}},
    }
    path = tmp_path / "settings.yaml"
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    main(["fit", "--config", str(path)])
    capsys.readouterr()
    assert reported(tmp_path / "runs") == 0
    page = tmp_path / "runs" / "version_0" / "report.html"
    assert capsys.readouterr().out.startswith(f"{page}: ")
    text = page.read_text(encoding="utf-8")
    for part in ("test/accuracy", "network.1", "spike rate", 'alt="landscape"', 'alt="spikes"', "fit --config"):
        assert part in text


def test_another_file_and_what_is_no_run(tmp_path, capsys):
    target = tmp_path / "page.html"
    assert reported(write_run(tmp_path / "run"), "--out", target) == 0
    assert target.is_file()
    assert reported(tmp_path / "none") == 2
    assert capsys.readouterr().err == f"error: There is no folder {tmp_path / 'none'}.\n"


def test_without_matplotlib_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert reported(write_run(tmp_path / "run")) == 2
    assert 'pip install "lightning-polystep[pictures]"' in capsys.readouterr().err


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
@pytest.mark.parametrize(("scheme", "paper"), [(1, (255, 255, 255)), (0, (22, 22, 22))], ids=["light", "dark"])
def test_a_browser_draws_the_page_in_light_and_dark(tmp_path, scheme, paper):
    from PIL import Image  # noqa: PLC0415

    page, picture = report(write_run(tmp_path / "run")), tmp_path / "page.png"
    options = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--window-size=900,1800"]
    options += [f"--user-data-dir={tmp_path / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    done = subprocess.run(
        [CHROMIUM, *options, f"--screenshot={picture}", page.as_uri()],
        capture_output=True,
        timeout=120,
        check=False,
    )
    assert picture.is_file(), done.stderr.decode(errors="replace")
    image = Image.open(picture).convert("RGB")
    assert image.getpixel((2, 2)) == paper
    shares = image.resize((90, 180)).getcolors(90 * 180)
    drawn = sum(count for count, colour in shares if colour != paper)
    assert drawn > 0.3 * 90 * 180  # cards, curves and text
    blue = [colour for _, colour in image.getcolors(2**24) if colour[2] > colour[0] + 80]
    assert blue  # the lines of the curves
