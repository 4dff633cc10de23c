import inspect
import json
import re
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import ArgumentError
from pytorch_lightning.utilities.exceptions import MisconfigurationException

from lightning_polystep import PolyStep, PolyStepStrategy
from lightning_polystep.checkpoints import CheckedCheckpointIO
from lightning_polystep.cli import main
from lightning_polystep.schedules import Cosine
from lightning_polystep.transport import Sinkhorn

REPOSITORY = Path(__file__).resolve().parent.parent

SMALL = {
    "seed_everything": 0,
    "trainer": {
        "strategy": {"class_path": "lightning_polystep.PolyStepStrategy", "init_args": {"show_plan": False}},
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 2,
        "limit_train_batches": 2,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "callbacks": [
            {
                "class_path": "pytorch_lightning.callbacks.ModelCheckpoint",
                "init_args": {"monitor": "val/accuracy", "mode": "max"},
            }
        ],
    },
    "model": {
        "class_path": "models.Classifier",
        "init_args": {
            "network": {"class_path": "models.SpikingMLP", "init_args": {"sizes": [64, 8, 10], "num_steps": 4}}
        },
    },
    "data": {"class_path": "datamodules.Digits", "init_args": {"batch_size": 256}},
    "optimizer": {"class_path": "lightning_polystep.PolyStep", "init_args": {"lr": 0.3, "rank": 4}},
    "lr_scheduler": {"class_path": "torch.optim.lr_scheduler.ExponentialLR", "init_args": {"gamma": 0.5}},
}


@pytest.fixture
def config(tmp_path):
    """Writes SMALL, changed by a function, and returns its path; runs log into the test's own folder."""

    def write(change=lambda _config: None):
        # A copy: YAML would write the same objects as anchors.
        settings = json.loads(json.dumps(SMALL))
        settings["trainer"]["logger"] = {
            "class_path": "pytorch_lightning.loggers.CSVLogger",
            "init_args": {"save_dir": str(tmp_path / "runs")},
        }
        settings["trainer"]["default_root_dir"] = str(tmp_path)
        change(settings)
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return str(path)

    return write


def results(cli):
    return json.loads((Path(cli.trainer.log_dir) / "results.json").read_text(encoding="utf-8"))


def printed(capsys, *arguments):
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    assert stopped.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def documented_arguments(kind):
    """The names and the first words of the text of every argument, from the signature and the docstring."""
    names = [name for name in inspect.signature(kind).parameters if name not in {"self", "params"}]
    section = inspect.getdoc(kind).split("Args:")[1].split("Raises:")[0]
    texts = dict(re.findall(r"^    (\w+): (.+)$", section, flags=re.MULTILINE))
    assert set(names) <= set(texts), "an argument is missing in the docstring"
    return {name: " ".join(texts[name].split()[:4]) for name in names}


# --- fit --------------------------------------------------------------------------------------------------------------


def test_fit_trains_tests_the_best_checkpoint_and_writes_its_results(config):
    cli = main(["fit", "--config", config()])
    record = results(cli)
    assert record["steps"] == 4
    assert record["epochs"] == 2
    assert record["tested"] == "best checkpoint"
    assert set(record["test_metrics"]) == {"test/loss", "test/accuracy"}
    assert 0 <= record["test_metrics"]["test/accuracy"] <= 1
    assert record["seed"] == 0
    assert record["candidates"] > 0
    assert record["samples_per_candidate"] == 256
    assert record["wall_seconds"] > 0
    assert set(record["seconds_by_verb"]) == {"observe", "propose", "score", "transport", "move"}
    assert record["packages"]["torch"]
    assert len(record["parameters_sha256"]) == 64
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.3 * 0.5**2)
    assert (Path(cli.trainer.log_dir) / "config.yaml").is_file()


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_config_chooses_a_transport_and_a_schedule_and_its_checkpoint_goes_on(config):
    """Also with the config that the run saved, and from a file of names and numbers."""

    def change(settings):
        settings["optimizer"]["init_args"] |= {
            "transport": {
                "class_path": "lightning_polystep.transport.Sinkhorn",
                "init_args": {"tolerance": 1e-3, "columns": [0.125] * 8},
            },
            "epsilon": {
                "class_path": "lightning_polystep.schedules.Cosine",
                "init_args": {"start": 2.0, "end": 1.0, "steps": 4},
            },
        }

    first = main(["fit", "--config", config(change), "--test_after_fit=false"])
    saved = str(Path(first.trainer.log_dir) / "config.yaml")
    again = main(["fit", "--config", saved, "--test_after_fit=false"])
    assert results(first)["parameters_sha256"] == results(again)["parameters_sha256"]
    path = first.trainer.checkpoint_callback.best_model_path
    (group,) = torch.load(path, weights_only=True)["optimizer_states"][0]["param_groups"]
    assert group["transport"]["name"] == "sinkhorn"
    assert group["epsilon"] == {"name": "cosine", "start": 2.0, "end": 1.0, "steps": 4}
    on = main(["fit", "--config", saved, "--test_after_fit=false", "--ckpt_path", path, "--trainer.max_epochs=3"])
    (group,) = on.trainer.optimizers[0].param_groups
    assert group["transport"] == Sinkhorn(tolerance=1e-3, columns=(0.125,) * 8)
    assert group["epsilon"] == Cosine(2.0, 1.0, steps=4)
    assert float(on.trainer.callback_metrics["polystep/marginal_error"]) < 1e-2


def test_the_command_line_names_a_transport(config):
    arguments = ["fit", "--config", config(), "--test_after_fit=false", "--trainer.max_epochs=1"]
    cli = main([*arguments, "--optimizer.transport=sample", "--optimizer.epsilon=0.5"])
    (group,) = cli.trainer.optimizers[0].param_groups
    assert (group["transport"], group["epsilon"]) == ("sample", 0.5)


def test_the_best_checkpoint_is_what_is_tested(config):
    cli = main(["fit", "--config", config()])
    best = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)["state_dict"]
    assert all(torch.equal(best[name], value) for name, value in cli.model.state_dict().items())
    (metrics,) = cli.trainer.test(cli.model, datamodule=cli.datamodule, verbose=False)
    assert results(cli)["test_metrics"] == pytest.approx(metrics)


def test_testing_can_be_switched_off(config):
    record = results(main(["fit", "--config", config(), "--test_after_fit", "false"]))
    assert "test_metrics" not in record
    assert "tested" not in record
    assert record["steps"] == 4


def test_the_last_weights_are_tested_where_no_checkpoint_is_kept(config):
    def change(settings):
        settings["trainer"]["callbacks"] = None
        settings["trainer"]["enable_checkpointing"] = False

    record = results(main(["fit", "--config", config(change)]))
    assert record["tested"] == "last weights"
    assert "test/accuracy" in record["test_metrics"]


def test_the_seed_alone_decides_the_result(config):
    path = config()

    def run(seed):
        return results(main(["fit", "--config", path, "--seed_everything", str(seed), "--test_after_fit", "false"]))

    first, again, other = run(1), run(1), run(2)
    assert (first["seed"], other["seed"]) == (1, 2)
    assert first["parameters_sha256"] == again["parameters_sha256"] != other["parameters_sha256"]
    assert first["fit_metrics"] == again["fit_metrics"]


def test_a_second_run_of_the_same_command_overwrites_nothing(config):
    path = config()
    runs = [main(["fit", "--config", path, "--test_after_fit", "false"]) for _ in range(2)]
    assert runs[0].trainer.log_dir != runs[1].trainer.log_dir
    assert all(results(run)["steps"] == 4 for run in runs)


def test_a_fit_into_the_same_folder_may_be_repeated(config):
    def change(settings):
        settings["trainer"]["logger"]["init_args"]["version"] = "again"
        settings["trainer"]["callbacks"] = None

    path = config(change)
    main(["fit", "--config", path, "--test_after_fit", "false"])
    with pytest.warns(UserWarning, match="Experiment logs directory"):  # CSVLogger's own
        record = results(main(["fit", "--config", path, "--test_after_fit", "false"]))
    assert record["steps"] == 4


def test_fast_dev_run_tests_too_and_leaves_no_files(config, tmp_path, monkeypatch):
    path = config(lambda settings: settings["trainer"].pop("default_root_dir"))
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    cli = main(["fit", "--config", path, "--trainer.fast_dev_run", "2"])
    assert "test/accuracy" in cli.trainer.callback_metrics
    assert set(tmp_path.rglob("*")) == before


@pytest.mark.filterwarnings("ignore:configure_optimizers returned Adam")
@pytest.mark.parametrize("section", ["none", "adam"])
def test_without_polystep_in_the_config_it_trains_all_the_same(config, section):
    def change(settings):
        del settings["lr_scheduler"]
        del settings["optimizer"]
        if section == "adam":
            settings["optimizer"] = {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3}}

    cli = main(["fit", "--config", config(change), "--test_after_fit", "false"])
    assert isinstance(cli.trainer.optimizers[0], PolyStep)
    assert results(cli)["candidates"] > 0


def test_the_name_of_the_strategy_is_enough(config):
    cli = main(
        ["fit", "--config", config(lambda s: s["trainer"].update(strategy="polystep")), "--test_after_fit=false"]
    )
    assert isinstance(cli.trainer.strategy, PolyStepStrategy)


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_test_alone(config):
    fitted = main(["fit", "--config", config()])
    best = fitted.trainer.checkpoint_callback.best_model_path
    # `test` has no optimizer; its other keys are those of the fit.
    path = config(lambda settings: [settings.pop(key) for key in ("optimizer", "lr_scheduler")])
    cli = main(["test", "--config", path, "--ckpt_path", best])
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    assert metrics == pytest.approx(results(fitted)["test_metrics"])


def test_audit_takes_the_config_of_a_fit_and_leaves_no_files(config, tmp_path, monkeypatch, capsys):
    path = config()
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    main(["audit", "--config", path])
    text = " ".join(capsys.readouterr().out.split())
    assert "network.1.weight" in text
    assert "0.0% of 610 numbers are in a parameter with a gradient" in text
    assert set(tmp_path.rglob("*")) == before


# --- help -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "kind"),
    [("--optimizer.help", PolyStep), ("--trainer.strategy.help", PolyStepStrategy)],
)
def test_help_prints_every_argument_with_its_text(capsys, option, kind):
    text = printed(capsys, "fit", option, f"lightning_polystep.{kind.__name__}")
    for name, words in documented_arguments(kind).items():
        assert f"{name} " in text, name
        # Help wraps the text anywhere, and argparse doubles no markup.
        assert words in text, f"{name}: {words}"
    assert "Untyped" not in text


def test_help_of_fit_names_our_switch(capsys):
    text = printed(capsys, "fit", "--help")
    assert "--test_after_fit" in text
    assert "End fit by testing the best checkpoint" in text


def test_the_module_runs_as_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_polystep", "fit", "--optimizer.help", "lightning_polystep.PolyStep"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "probe_radius" in done.stdout
    assert done.stderr == ""


# --- mistakes ---------------------------------------------------------------------------------------------------------


def refused(capfd, *arguments):
    """What a user reads when a command is refused."""
    with pytest.raises((SystemExit, ArgumentError, ValueError, MisconfigurationException)) as stopped:
        main(list(arguments))
    assert not (isinstance(stopped.value, SystemExit) and stopped.value.code == 0)
    return " ".join(f"{capfd.readouterr().err} {stopped.value}".split())


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--optimizer.lr=-1", ["lr=-1", "the step radius must be at least 0"]),
        ("--optimizer.subspace=fancy", ["subspace", "fancy", "inputs", "gaussian", "full"]),
        ("--optimizer.polytope=pyramid", ["polytope", "pyramid", "orthoplex", "simplex", "cube"]),
        ("--optimizer.momentum=2", ["momentum=2", "must be in [0, 1)"]),
        ("--optimizer.transport=hard", ["transport", "hard", "softmax", "sinkhorn", "kl", "sample"]),
        ("--optimizer.learning_rate=1", ["learning_rate"]),
        ("--optimizer.lr=big", ["lr", "big", "float"]),
        ("--optimizer=lightning_polystep.PolyStop", ["PolyStop"]),
        ("--trainer.strategy.evaluation=quick", ["evaluation", "quick", "auto", "tape", "loop"]),
        ("--trainer.strategy=polysteps", ["polysteps"]),
        ("--model=models.Clasifier", ["models.Clasifier"]),
        ("--data.batch_sise=3", ["batch_sise"]),
        ("--trainer.gradient_clip_val=1", ["gradient_clip_val", "leave it out"]),
    ],
)
def test_mistakes_on_the_command_line_get_readable_errors(config, capfd, argument, words):
    message = refused(capfd, "fit", "--config", config(), argument)
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s["optimizer"]["init_args"].update(subspace="fancy"), ["subspace", "fancy", "gaussian"]),
        (lambda s: s["optimizer"]["init_args"].update(lr=-1), ["lr=-1", "at least 0"]),
        (
            lambda s: s["optimizer"]["init_args"].update(
                transport={"class_path": "lightning_polystep.transport.KLRelaxed", "init_args": {"tau": -1}}
            ),
            ["tau=-1", "the price must be at least 0"],
        ),
        (
            lambda s: s["optimizer"]["init_args"].update(
                epsilon={
                    "class_path": "lightning_polystep.schedules.Linear",
                    "init_args": {"start": 1, "end": 0, "steps": 5},
                }
            ),
            ["Linear(start=1", "the temperature must be above 0"],
        ),
        (lambda s: s["optimizer"].update(class_path="lightning_polystep.Polystep"), ["lightning_polystep.Polystep"]),
        (lambda s: s["trainer"]["strategy"]["init_args"].update(foreign_optimizer="no"), ["foreign_optimizer", "'no'"]),
        (lambda s: s["model"]["init_args"].update(network="models.SpikingMLQ"), ["models.SpikingMLQ"]),
        (lambda s: s.update(optimiser={"lr": 1}), ["optimiser"]),
    ],
    ids=["subspace", "lr", "transport", "schedule", "class path", "strategy", "network", "unknown key"],
)
def test_mistakes_in_a_config_get_readable_errors(config, capfd, change, words):
    message = refused(capfd, "fit", "--config", config(change))
    for word in words:
        assert word in message


def test_a_missing_config_is_named(capfd):
    assert "nowhere.yaml" in refused(capfd, "fit", "--config", "nowhere.yaml")


# --- checkpoints ------------------------------------------------------------------------------------------------------


COMMANDS = ["fit", "validate", "test", "predict"]


def without_optimizer(settings):
    """Only ``fit`` has these; its other keys are those of all commands."""
    for key in ("optimizer", "lr_scheduler"):
        settings.pop(key)


@pytest.fixture
def checkpoint(config, tmp_path):
    """A checkpoint of a short fit, as a dictionary, and a function that saves it with other hyperparameters."""
    cli = main(["fit", "--config", config(), "--test_after_fit", "false"])
    content = torch.load(cli.trainer.checkpoint_callback.best_model_path, weights_only=True)

    def save(**hyper_parameters):
        path = tmp_path / "changed.ckpt"
        CheckedCheckpointIO().save_checkpoint({**content, "hyper_parameters": hyper_parameters}, path)
        return str(path)

    return save


SPY = """
import pathlib
import pytorch_lightning as pl
pathlib.Path({mark!r}).touch()
class Spy(pl.LightningModule):
    pass
"""


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    "hyper_parameters",
    [
        {"_class_path": "spy_on_me.Spy", "_instantiator": "pytorch_lightning.cli.instantiate_module"},
        {"_class_path": "spy_on_me.Spy"},
        {"class_path": "spy_on_me.Spy", "init_args": {}},
        {"network": {"class_path": "spy_on_me.Spy"}},
        {"_class_path": "models.Classifier", "network": {"class_path": "spy_on_me.Spy"}},
    ],
    ids=["as Lightning saves it", "class path", "as a config", "nested", "nested in a known class"],
)
def test_classes_that_a_checkpoint_names_are_neither_imported_nor_built(
    config, checkpoint, tmp_path, monkeypatch, command, hyper_parameters
):
    mark = tmp_path / "imported"
    (tmp_path / "spy_on_me.py").write_text(SPY.format(mark=str(mark)), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    path = checkpoint(**hyper_parameters)
    change = (lambda _settings: None) if command == "fit" else without_optimizer
    more = ["--test_after_fit", "false", "--trainer.max_epochs", "3"] if command == "fit" else []
    told = r"saved (by |with network\.class_path=)'spy_on_me\.Spy', and (--model says|the arguments say) 'models\."
    warns = "_class_path" in hyper_parameters or "network" in hyper_parameters
    if command == "predict":
        monkeypatch.setattr("datamodules.Digits.predict_dataloader", lambda self: self.test_dataloader(), raising=False)
        monkeypatch.setattr("models.Classifier.predict_step", lambda self, batch, _index: batch[1], raising=False)
    with pytest.warns(UserWarning, match=told) if warns else nullcontext():
        cli = main([command, "--config", config(change), "--ckpt_path", path, *more])
    assert type(cli.model).__name__ == "Classifier"
    assert not mark.exists()


@pytest.mark.filterwarnings("ignore:The dirpath has changed from")
def test_hyperparameters_that_differ_are_told_and_do_not_count(config, checkpoint):
    network = {"class_path": "models.SpikingMLP", "init_args": {"sizes": [64, 8, 10], "num_steps": 9}}
    path = checkpoint(_class_path="models.Classifier", network=network, unknown=3)
    with pytest.warns(UserWarning, match=r"saved with network\.init_args\.num_steps=9, and the arguments say 4"):
        cli = main(["test", "--config", config(without_optimizer), "--ckpt_path", path])
    assert "test/accuracy" in cli.trainer.callback_metrics


def test_hyperparameters_that_agree_are_not_worth_a_word(config, checkpoint, recwarn):
    main(["test", "--config", config(without_optimizer), "--ckpt_path", checkpoint(_class_path="models.Classifier")])
    assert not [each for each in recwarn if "checkpoint was saved" in str(each.message)]


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda path: path.write_bytes(b""), "it has only 0 bytes"),
        (lambda path: path.write_text("no checkpoint\n"), "it is a text that begins with 'no checkpoint'"),
        (lambda path: path.write_bytes(path.read_bytes()[:-100]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:5000]), "is damaged"),
        (lambda path: path.unlink(), "There is no checkpoint"),
        (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
        (lambda path: torch.save({}, path, _use_new_zipfile_serialization=False), "of the legacy format of torch.save"),
        (lambda path: torch.save({"w": torch.ones(2)}, path), "holds weights alone"),
        (lambda path: torch.save({"a": Path("/")}, path), "holds objects beside tensors"),
    ],
    ids=["empty", "text", "end", "cut", "missing", "folder", "legacy", "weights", "objects"],
)
def test_a_file_that_is_no_checkpoint_is_refused_in_one_sentence(config, tmp_path, capfd, command, make, words):
    path = tmp_path / "a.ckpt"
    CheckedCheckpointIO().save_checkpoint(
        {"state_dict": {"w": torch.randn(5000)}, "pytorch-lightning_version": "2"}, path
    )
    make(path)
    change = (lambda _settings: None) if command == "fit" else without_optimizer
    message = refused(capfd, command, "--config", config(change), "--ckpt_path", str(path))
    assert words in message
    assert "Traceback" not in message


@pytest.mark.filterwarnings("ignore:.*there is no last checkpoint available")
def test_names_of_checkpoints_are_left_to_the_trainer(config, capfd):
    main(["test", "--config", config(without_optimizer), "--ckpt_path", "last"])
    assert 'ckpt_path="best"' in refused(capfd, "test", "--config", config(without_optimizer), "--ckpt_path", "best")
