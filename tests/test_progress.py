"""The progress bar shows candidates per second, and nothing else has them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pytorch_lightning.callbacks import RichProgressBar, TQDMProgressBar

from lightning_polystep.progress import LABEL, CandidateRate, shortened
from tests.helpers.boring import Boring, loader, polystep, trainer


@pytest.mark.parametrize("bar", [TQDMProgressBar, RichProgressBar])
def test_the_bar_of_a_fit_shows_it(tmp_path, bar):
    shown = []

    class Notes(bar):
        def on_train_batch_end(self, trainer, pl_module, *args):
            shown.append(self.get_metrics(trainer, pl_module))
            super().on_train_batch_end(trainer, pl_module, *args)

    notes = Notes()
    run = trainer(tmp_path, enable_progress_bar=True, callbacks=[notes], max_epochs=2)
    run.fit(Boring(polystep), loader(batches=3))
    assert LABEL not in shown[0]  # one step tells no rate
    assert all(float(metrics[LABEL].rstrip("kMG")) > 0 for metrics in shown[1:])
    assert not any(LABEL in name for name in run.callback_metrics)
    assert "get_metrics" not in vars(notes)  # as it was
    assert LABEL not in notes.get_metrics(run, run.lightning_module)


def test_without_a_bar_nothing_is_done(tmp_path):
    run = trainer(tmp_path)
    run.fit(Boring(polystep), loader(batches=2))
    assert run.progress_bar_callback is None


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0.01, 100)), min_size=2, max_size=30))
def test_the_rate_is_that_of_the_last_steps(steps):
    rate, candidates, seconds, readings = CandidateRate(), 0, 0.0, []
    for scored, spent in steps:
        candidates, seconds = candidates + scored, seconds + spent
        readings.append((candidates, seconds))
        told = rate.read(candidates, seconds)
        assert rate.read(candidates, seconds + 1) == told  # asked again in the same step
    (first, begun), (last, ended) = readings[-10:][0], readings[-1]
    assert told == shortened((last - first) / (ended - begun))


@given(st.floats(0, 1e12))
def test_three_digits_are_right(number):
    text = shortened(number)
    unit = {"k": 1e3, "M": 1e6, "G": 1e9}.get(text[-1], 1)
    assert float(text.rstrip("kMG")) * unit == pytest.approx(number, rel=0.006, abs=1e-9)
