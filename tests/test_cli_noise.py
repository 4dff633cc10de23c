import logging
import warnings

import pytest
from lightning_utilities.core.rank_zero import log, rank_zero_info

from lightning_polystep.cli_noise import without_noise

ADVERTISED = "💡 Tip: For seamless cloud logging, try installing something"


@pytest.fixture
def lines(monkeypatch):
    """What Lightning's log lets through."""
    found = []
    handler = logging.Handler()
    handler.emit = lambda record: found.append(record.getMessage())
    monkeypatch.setattr(log, "handlers", [handler])
    return found


def test_advertisements_and_absent_processors_are_left_out_while_it_runs_and_not_after(lines):
    with without_noise():
        for line in (ADVERTISED, "TPU available: False, using: 0 TPU cores", "GPU available: False, used: False"):
            rank_zero_info(line)
    rank_zero_info(ADVERTISED)
    assert lines == ["GPU available: False, used: False", ADVERTISED]


def test_they_come_back_after_an_error(lines):
    with pytest.raises(KeyError), without_noise():
        raise KeyError
    rank_zero_info(ADVERTISED)
    assert lines == [ADVERTISED]


def test_of_warnings_only_the_one_that_every_run_has_is_left_out():
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        with without_noise():
            warnings.warn("`isinstance(treespec, LeafSpec)` is deprecated, use ...", FutureWarning, stacklevel=1)
            warnings.warn("something else is deprecated", FutureWarning, stacklevel=1)
    assert [str(each.message) for each in seen] == ["something else is deprecated"]
