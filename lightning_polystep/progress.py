"""How many candidates a second a fit scores, on the Trainer's progress bar."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from lightning_polystep.isolation import replaced

if TYPE_CHECKING:
    from lightning_polystep.engine import Engine
    from lightning_polystep.host import pl

# The rate is that of the last so many readings: what was compiled in the first steps is soon forgotten.
_READINGS = 10
LABEL = "cand/s"


class CandidateRate:
    """Candidates per second of the verbs, over the last few steps; validation and loading do not count.

    Example:
        >>> rate = CandidateRate()
        >>> rate.read(0, 0.0), rate.read(5000, 2.0), rate.read(10000, 2.5)
        ('', '', '10k')
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[int, float]] = deque(maxlen=_READINGS)

    def read(self, candidates: int, seconds: float) -> str:
        """Return the rate in three digits; empty until there are two steps to take it from.

        Args:
            candidates: Scored so far.
            seconds: Spent so far.
        """
        if not candidates:  # the step that makes the plan has no say
            return ""
        if not self._readings or self._readings[-1][0] != candidates:
            self._readings.append((candidates, seconds))
        first, last = self._readings[0], self._readings[-1]
        return shortened((last[0] - first[0]) / (last[1] - first[1])) if last[1] > first[1] else ""


def shortened(number: float) -> str:
    """Return a number in three digits.

    Args:
        number: Not below 0.

    Example:
        >>> [shortened(number) for number in (0.5, 987.6, 12345, 2.5e6, 3e9)]
        ['0.5', '988', '12.3k', '2.5M', '3G']
    """
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if number >= 0.9995 * unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


@contextmanager
def rate_on_bar(trainer: pl.Trainer, engines: Callable[[], Sequence[Engine]]) -> Iterator[None]:
    """Show ``cand/s`` on the progress bar while the body runs; logs and metrics do not have it.

    Args:
        trainer: Whose bar it is; nothing is done without one.
        engines: Returns those that score.
    """
    bar: Any = trainer.progress_bar_callback
    if bar is None:
        yield
        return
    shown, rate = bar.get_metrics, CandidateRate()

    def get_metrics(*args: Any, **named: Any) -> dict[str, Any]:
        metrics = dict(shown(*args, **named))
        candidates = sum(engine.optimizer.progress.candidates for engine in engines())
        text = rate.read(candidates, sum(sum(engine.clock.seconds.values()) for engine in engines()))
        return {**metrics, LABEL: text} if text else metrics

    with replaced([(bar, "get_metrics", get_metrics)]):
        yield
