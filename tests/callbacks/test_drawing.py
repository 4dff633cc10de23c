"""Where pictures go: to the run's folder, and to loggers in the way in which each takes one."""

from types import SimpleNamespace

import pytest
import pytorch_lightning as pl
from pytorch_lightning.loggers import CSVLogger, Logger, TensorBoardLogger

pytest.importorskip("matplotlib")

from lightning_polystep.callbacks.drawing import Drawing
from lightning_polystep.pictures import loads
from tests.helpers.boring import Boring, loader, polystep


class Draws(Drawing):
    def on_train_epoch_end(self, trainer, pl_module):
        if self.due(trainer):
            import torch  # noqa: PLC0415

            self.show(trainer, "load", loads({"mixture": torch.tensor([1, 2])}, "expert"))


class Keeps(Logger):
    """A logger that takes pictures in one of the ways."""

    def __init__(self, experiment=None, **ways):
        super().__init__()
        self._experiment = experiment
        vars(self).update(ways)

    name, version = "keeps", 0

    @property
    def experiment(self):
        return self._experiment

    def log_metrics(self, metrics, step=None):
        pass

    def log_hyperparams(self, params, *args, **kwargs):
        pass


def fit(tmp_path, loggers, callback, **options):
    run = pl.Trainer(
        strategy="polystep",
        accelerator="cpu",
        logger=loggers,
        callbacks=[callback],
        default_root_dir=tmp_path,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        **{"max_epochs": 5, **options},
    )
    run.fit(Boring(polystep), loader(batches=2))
    return run


def test_a_file_in_the_folder_of_the_run(tmp_path):
    logger = CSVLogger(tmp_path, "runs")
    fit(tmp_path, [logger], Draws())
    path = tmp_path / "runs" / "version_0" / "pictures" / "load.png"
    assert path.read_bytes().startswith(b"\x89PNG")


def test_a_file_where_there_is_no_logger(tmp_path):
    fit(tmp_path, False, Draws())
    assert (tmp_path / "pictures" / "load.png").is_file()


def test_every_way_in_which_a_logger_takes_a_picture(tmp_path):
    seen = []
    by_image = Keeps(log_image=lambda key, images, step: seen.append(("image", key, len(images), step)))
    by_figure = Keeps(
        SimpleNamespace(
            add_figure=lambda tag, _figure, global_step, close: seen.append(("add", tag, global_step, close))
        )
    )
    comet = Keeps(SimpleNamespace(log_figure=lambda name, _figure, step: seen.append(("comet", name, step))))
    mlflow = Keeps(
        SimpleNamespace(log_figure=lambda run, _figure, file: seen.append(("mlflow", run, file))), run_id="run"
    )
    fit(tmp_path, [by_image, by_figure, comet, mlflow], Draws(), max_epochs=1)
    assert seen == [
        ("image", "pictures/load", 1, 2),
        ("add", "pictures/load", 2, False),
        ("comet", "pictures/load", 2),
        ("mlflow", "run", "pictures/load_2.png"),
    ]


def test_tensorboard_holds_the_picture(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logger = TensorBoardLogger(tmp_path, "runs")
    fit(tmp_path, [logger], Draws(), max_epochs=1)
    events = accumulator.EventAccumulator(logger.log_dir)
    events.Reload()
    assert events.Images("pictures/load")[0].encoded_image_string.startswith(b"\x89PNG")


@pytest.mark.parametrize(("every", "epochs", "expected"), [(1, 3, [0, 1, 2]), (2, 5, [1, 3, 4]), (9, 2, [1])])
def test_every_so_many_epochs_and_the_last(tmp_path, every, epochs, expected):
    drawn = []

    class Notes(Draws):
        def show(self, trainer, name, figure):
            drawn.append(trainer.current_epoch)

    fit(tmp_path, False, Notes(every), max_epochs=epochs)
    assert drawn == expected


def test_a_fast_development_run_leaves_nothing(tmp_path):
    fit(tmp_path, False, Draws(), fast_dev_run=True)
    assert not list(tmp_path.rglob("*.png"))


def test_fewer_than_every_epoch_is_refused():
    with pytest.raises(ValueError, match="every_n_epochs must be at least 1, got 0"):
        Draws(0)
