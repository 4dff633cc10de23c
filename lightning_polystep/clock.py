"""How long each verb of a step takes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

VERBS = ("observe", "propose", "score", "transport", "move")


class VerbClock:
    """Wall seconds per verb; time inside a nested verb counts for the inner one alone."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.reset()
        self._open: list[str] = []
        self._since = 0.0

    def reset(self) -> None:
        """Start afresh, as after a warm-up."""
        self.seconds = dict.fromkeys(VERBS, 0.0)

    @contextmanager
    def __call__(self, verb: str) -> Iterator[None]:
        """Time the body under a verb."""
        self._charge()
        self._open.append(verb)
        try:
            yield
        finally:
            self._charge()
            self._open.pop()

    def _charge(self) -> None:
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now
