"""What callbacks that draw share: where a picture goes, and what is said where it cannot be drawn."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_polystep.host import Callback, DummyLogger, TrainerFn, pl, rank_zero_warn
from lightning_polystep.pictures.style import png_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Drawing(Callback):
    """Base of callbacks that draw: a picture goes into ``pictures/`` of the run's folder and to every logger.

    Of loggers, those take pictures that have ``log_image`` (Weights & Biases and others of its kind), or whose
    ``experiment`` has ``add_figure`` (TensorBoard) or ``log_figure`` (Comet, MLflow). For others, as CSVLogger, there
    is the file. One process draws; a fast development run draws nothing.

    Args:
        every_n_epochs: Draw after every so many epochs of training.

    Raises:
        ValueError: If ``every_n_epochs`` is below 1.
    """

    def __init__(self, every_n_epochs: int = 1) -> None:
        if every_n_epochs < 1:
            raise ValueError(f"{type(self).__name__}: every_n_epochs must be at least 1, got {every_n_epochs}.")
        self.every_n_epochs = every_n_epochs
        self._told: set[str] = set()

    def due(self, trainer: pl.Trainer) -> bool:
        """Tell whether this epoch is one to draw; what is no fit is drawn in any case."""
        if trainer.state.fn != TrainerFn.FITTING:
            return True
        last = trainer.max_epochs is not None and trainer.current_epoch + 1 == trainer.max_epochs
        return last or (trainer.current_epoch + 1) % self.every_n_epochs == 0

    def show(self, trainer: pl.Trainer, name: str, figure: Figure) -> None:
        """Write a picture to the run's folder and the loggers; it replaces the file of the same name.

        Args:
            trainer: The trainer.
            name: Of the picture; the end of the file's name is added.
            figure: The picture.
        """
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        folder = _folder(trainer)
        folder.mkdir(parents=True, exist_ok=True)
        image = png_of(figure)
        (folder / f"{name}.png").write_bytes(image)
        for logger in trainer.loggers:
            _log(logger, f"pictures/{name}", figure, image, trainer.global_step)

    def tell_once(self, sentence: str) -> None:
        """Say why something is not drawn, once."""
        if sentence not in self._told:
            self._told.add(sentence)
            rank_zero_warn(f"{type(self).__name__}: {sentence}")


def _folder(trainer: pl.Trainer) -> Path:
    # log_dir asks all processes; here one draws alone, and the loggers know.
    for logger in trainer.loggers:
        place = getattr(logger, "log_dir", None) or getattr(logger, "save_dir", None)
        if place:
            return Path(place) / "pictures"
    return Path(trainer.default_root_dir) / "pictures"


def _log(logger: Any, name: str, figure: Figure, image: bytes, step: int) -> None:
    """Give a logger a picture, in the way in which it takes one."""
    if isinstance(logger, DummyLogger):
        return
    experiment: Any = getattr(logger, "experiment", None)
    if hasattr(logger, "log_image"):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"{name.replace('/', '_')}.png"
            path.write_bytes(image)
            logger.log_image(name, [str(path)], step=step)
    elif hasattr(experiment, "add_figure"):
        experiment.add_figure(name, figure, global_step=step, close=False)
    elif hasattr(experiment, "log_figure"):
        run = getattr(logger, "run_id", None)
        if run is not None:  # MLflow's client serves many runs
            experiment.log_figure(run, figure, f"{name}_{step}.png")
        else:
            experiment.log_figure(name, figure, step=step)
