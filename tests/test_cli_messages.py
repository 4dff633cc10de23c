"""One sentence for each kind of mistake on the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_polystep.cli import _name_of_module, main
from lightning_polystep.cli_messages import readable

REPOSITORY = Path(__file__).resolve().parent.parent
CONFIG = str(REPOSITORY / "configs" / "digits_spiking.yaml")

MISTAKES = [
    ("--model=models.Clasifier", "--model: models.Clasifier does not exist: did you mean 'Classifier'?"),
    ("--model=nowhere.Net", "--model: there is no module 'nowhere' to import nowhere.Net from."),
    ("--data=datamodules.Digit", "--data: datamodules.Digit does not exist: did you mean 'Digits'?"),
    (
        "--optimizer=lightning_polystep.PolyStop",
        "--optimizer: lightning_polystep.PolyStop does not exist: did you mean ",
    ),
    (
        "--model.network=models.SpikingMLQ",
        "--model.network: models.SpikingMLQ does not exist: did you mean 'Spiking",
    ),
    ("--model.netwrk=3", "--model.netwrk: models.Classifier has no such option: did you mean 'net"),
    ("--model.netwrk.sizes=3", "--model.netwrk.sizes: models.Classifier has no such option: did you mean 'network'?"),
    ("--model.network.num_stepz=3", "--model.network.num_stepz: models.SpikingMLP has no such option: did you mean "),
    ("--data.batch_sise=3", "--data.batch_sise: datamodules.Digits has no such option: did you mean 'batch_size'?"),
    ("--optimizer.learning=3", "--optimizer.learning: lightning_polystep.PolyStep has no such option."),
    ("--model.network.sizes=abc", "--model.network.sizes='abc': list expected."),
    ("--model.network.num_steps=three", "--model.network.num_steps='three': int or null expected."),
    ("--optimizer.lr=big", "--optimizer.lr='big': float expected."),
    ("--trainer.max_epochs=x", "--trainer.max_epochs='x': int or null expected."),
    ("--seed_everything=abc", "--seed_everything='abc': bool or int expected."),
    ("--trainer.callbacks=Foo", "--trainer.callbacks='Foo': list or class path or null expected."),
    (
        "--trainer.strategy.evaluation=quick",
        "--trainer.strategy.evaluation='quick': one of 'auto', 'tape', 'loop' expected.",
    ),
    ("--optimiser.lr=3", "--optimiser.lr is no option: did you mean '--optimizer.lr'?"),
    ("--trainer.maxepochs=3", "--trainer.maxepochs is no option: did you mean '--trainer.max_epochs'?"),
    ("--nonsense=3", "--nonsense is no option."),
    ("--optimizer.lr=-1", "PolyStep(lr=-1.0): the step radius must be at least 0."),
    ("--optimizer.lr=.inf", "PolyStep(lr=inf): the step radius must be at least 0, and finite."),
    ("--optimizer.momentum=1", "PolyStep(momentum=1.0): the memory must be in [0, 1)."),
    ("--trainer.strategy.max_candidates=-5", "PolyStepStrategy(max_candidates=-5): it must be at least 1, or None."),
    ("--model=models.SpikingMLP", "--model='models.SpikingMLP': subclass of LightningModule or null expected."),
    ("--model.network.sizes=[64]", "SpikingMLP: sizes needs an input and an output size, got (64,)."),
    ("--model.network.sizes=[64,-1,10]", "SpikingMLP: each of sizes must be at least 1, got (64, -1, 10)."),
    ("--model.network.num_steps=0", "LIF: num_steps must be at least 1, or None for a current that has a time axis."),
    ("--data.batch_size=0", "batch_size must be at least 1, got 0."),
    ("--trainer.strategy=polystp", "There is no strategy 'polystp': this package's are polystep, polystep_ddp, "),
    ("--trainer.accelerator=gpo", "You selected an invalid accelerator name: `accelerator='gpo'`."),
    ("--model.network.sizes=[32,128,10]", "The data gives 64 numbers where the network takes 32 "),
    ("--model.network.sizes=[64,128,5]", "A label is "),
    (
        "--trainer.gradient_clip_val=1",
        "Trainer(gradient_clip_val=...) clips gradients, and PolyStep has none: leave it",
    ),
    ("--trainer.max_epochs=-5", "`max_epochs` must be a non-negative integer or -1. You passed in -5."),
]


@pytest.mark.parametrize(("argument", "sentence"), MISTAKES, ids=[argument for argument, _ in MISTAKES])
def test_a_mistake_gets_one_sentence(capfd, argument, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--config", CONFIG, argument])
    assert stopped.value.code == 2
    *_, error, tip = capfd.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {sentence}")
    assert tip.endswith("--help lists the options.")
    assert not re.search(r"NestedArg|<class|Union|Parser key", error)


@pytest.mark.parametrize("command", ["validate", "test", "predict", "audit"])
def test_every_command_says_it_so(capfd, command):
    with pytest.raises(SystemExit):
        main([command, "--model=models.Clasifier"])
    assert "error: --model: models.Clasifier does not exist: did you mean 'Classifier'?" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("optimizer:\n  class_path: lightning_polystep.Polystep\n", "lightning_polystep.Polystep does not exist"),
        ("trainer:\n  max_epochs: many\n", "--trainer.max_epochs='many': int or null expected."),
        (
            "data:\n  class_path: datamodules.Digits\n  init_args:\n    batch: 3\n",
            "datamodules.Digits has no such option",
        ),
    ],
    ids=["class", "type", "option"],
)
def test_mistakes_in_a_file_get_one_too(capfd, tmp_path, lines, sentence):
    path = tmp_path / "more.yaml"
    path.write_text(lines, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["fit", "--config", CONFIG, "--config", str(path)])
    error = capfd.readouterr().err.splitlines()[0]
    assert sentence in error
    assert not re.search(r"NestedArg|<class|Union", error)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "name a command first: fit, validate, test, predict, audit, solve, export, report."),
        (["--config", CONFIG], "name a command first: fit, "),
        (["fti", "--config", CONFIG], "'fti' is no command: did you mean 'fit'?"),
        (["reprt", "runs"], "'reprt' is no command: did you mean 'report'?"),
        (["dance"], "'dance' is no command: choose from fit, validate, "),
        (["fit"], "fit needs --model and --data: give them, or --config FILE with a file that has them."),
        (["audit", "--model=models.MaxSAT"], "audit needs --data: give them, or --config FILE"),
        (
            ["fit", "--model=models.Classifier", "--data=datamodules.Digits"],
            "--model.network: models.Classifier needs it, and it is not given.",
        ),
    ],
    ids=lambda value: " ".join(value)[-30:] if isinstance(value, list) else "",
)
def test_a_command_that_is_not_whole_says_what_it_lacks(capfd, arguments, sentence):
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    error, tip = capfd.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {sentence}")
    assert tip.endswith("--help lists the options.")


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("trainer:\n  max_epochs: 3\n strategy: x\n", "--config: the file is no YAML at line 3, column 2: "),
        ("just a text", "--config: sections such as model, data and trainer are expected, and the file is 'just"),
        ("", "--config: sections such as model, data and trainer are expected, and the file is empty."),
    ],
    ids=["indented", "text", "empty"],
)
def test_a_file_that_is_no_configuration_is_one_sentence(capfd, tmp_path, text, sentence):
    (tmp_path / "more.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(tmp_path / "more.yaml")])
    error, _ = capfd.readouterr().err.strip().splitlines()
    assert error.startswith(f"error: {sentence}")


def test_what_is_not_known_stays_as_it_is():
    assert readable("something else\nhappened") == "something else\nhappened"
    assert readable('Parser key "config": File does not exist: x.yaml') == "--config: File does not exist: x.yaml."


def test_no_usage_of_a_hundred_lines():
    command = [sys.executable, "-m", "lightning_polystep", "fit", "--config", CONFIG, "--data.batch_sise=3"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 2


@pytest.mark.parametrize(
    ("called", "told"),
    [("/somewhere/lightning_polystep/__main__.py", {"prog": "python -m lightning_polystep"}), ("train.py", {})],
)
def test_the_tip_names_the_command_as_it_is_typed(monkeypatch, called, told):
    monkeypatch.setattr("sys.argv", [called, "fit"])
    assert _name_of_module() == told


def test_data_that_are_not_there_are_a_sentence_with_the_cure(tmp_path, capsys):
    pytest.importorskip("torchvision")
    config = REPOSITORY / "configs" / "mnist_spiking.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", str(config), "--data.root", str(tmp_path), "--trainer.logger", "false"])
    assert ended.value.code == 2
    error, tip = capsys.readouterr().err.strip().splitlines()[-2:]
    assert re.match(
        r"error: .* not found in .*: pass download=True \(on the command line --data\.download true\)", error
    )
    assert tip.endswith("fit --help lists the options.")


def test_a_missing_file_that_the_system_tells_of_keeps_its_traceback(tmp_path, monkeypatch):
    def fit(*_args, **_kwargs):
        (tmp_path / "not there").read_text(encoding="utf-8")

    monkeypatch.setattr("lightning_polystep.cli.AuditTrainer.fit", fit)
    config = REPOSITORY / "configs" / "digits_spiking.yaml"
    with pytest.raises(FileNotFoundError, match="not there"):
        main(["fit", "--config", str(config), "--trainer.logger", "false"])
