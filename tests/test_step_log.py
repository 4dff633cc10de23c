"""The figures of a step arrive once, under the names that docs/using.md lists."""

import pytest

from lightning_polystep import PolyStepStrategy
from tests.helpers.boring import Boring, CountingLogger, loader, polystep, trainer

FIGURES = {"candidates", "cost_spread", "effective_vertices", "flat_rows", "step_norm", "skipped", "marginal_error"}


@pytest.mark.parametrize("per_block", [False, True])
def test_every_figure_is_logged_once_per_step(tmp_path, per_block):
    logger = CountingLogger()
    strategy = PolyStepStrategy(show_plan=False, log_per_block=per_block)
    trainer(tmp_path, strategy=strategy, logger=logger, log_every_n_steps=1).fit(Boring(polystep), loader(batches=4))
    ours = {name: values for name, values in logger.history.items() if name.startswith("polystep/")}
    blocks = {"null_candidates/net.0", "null_candidates/net.3"} if per_block else set()
    assert set(ours) == {f"polystep/{name}" for name in FIGURES | blocks}
    assert {len(values) for values in ours.values()} == {4}


def test_a_barebones_trainer_logs_nothing(tmp_path):
    options = {"barebones": True, "logger": None, "enable_checkpointing": None}
    run = trainer(tmp_path, **options)
    with pytest.warns(UserWarning, match="barebones"):
        run.fit(Boring(polystep), loader(batches=2))
    assert not run.logged_metrics
