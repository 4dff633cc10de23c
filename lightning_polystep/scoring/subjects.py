"""Score: what an estimating tier knows of its block, found once for each structure of a step, and its offer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, Protocol, TypeVar

from lightning_polystep.scoring.layers import Layers
from lightning_polystep.scoring.probe import Probe
from lightning_polystep.scoring.scores import Scores
from lightning_polystep.scoring.takers import Moment
from lightning_polystep.scoring.taped import Recording
from lightning_polystep.scoring.tier import NotOfferedError
from lightning_polystep.tape import NotOnTapeError


class HasScores(Protocol):
    """What is known of a block, with the scores of the step."""

    @property
    def scores(self) -> Scores:
        """The scores."""
        ...


Subject = TypeVar("Subject", bound=HasScores)


class Subjects(Generic[Subject]):
    """What is known of a block whose worth comes from the scores, by the structure of the step and its loss.

    Args:
        recording: The latest step.
    """

    def __init__(self, recording: Recording) -> None:
        self._recording = recording
        self._known: dict[tuple[object, ...], Subject] = {}

    def find(self, read: Callable[[Layers], Subject]) -> Subject:
        """Return what is known on steps of this structure.

        Args:
            read: Finds it, the first time, from the layers of the step.

        Raises:
            NotOnTapeError: Where there are no scores, or ``read`` does not find it.
        """
        recording = self._recording
        key = (recording.taken().structure(), recording.loss)
        if key not in self._known:
            scores = Scores.of(recording)
            if scores is None:
                raise NotOnTapeError("no scores lie between it and the loss of each sample")
            self._known[key] = read(Layers(recording, scores))
        return self._known[key]


def moment_of(recording: Recording, scores: Scores, probe: Probe) -> Moment:
    """Return what layers are looked at with.

    Args:
        recording: The step.
        scores: Of it.
        probe: Of the micro-batch.
    """
    return Moment(recording.taken(), scores.slopes(recording, probe.noise_key[1]), probe.noise_key)


class Estimating(Protocol):
    """A tier that has a subject.

    Args:
        recording: The step.
    """

    recording: Recording

    @property
    def subject(self) -> Any:
        """What is known of the block, or ``NotOnTapeError``."""
        ...

    @property
    def needs_samples(self) -> bool:
        """Whether what lies behind is learned from samples, and so from others where other processes see others."""
        ...


Tier = TypeVar("Tier", bound=Estimating)


def offered(tier: Tier) -> Tier:
    """Return a tier whose subject is known.

    Args:
        tier: The tier.

    Raises:
        NotOfferedError: Where it is not, or would not be the same on all processes.
    """
    try:
        _ = tier.subject
        needs_samples = tier.needs_samples
    except NotOnTapeError as error:
        raise NotOfferedError(str(error)) from error
    except RecursionError as error:
        raise NotOfferedError("too many layers lie behind it, one behind the other") from error
    if needs_samples and tier.recording.divides_batches:
        raise NotOfferedError("processes that divide a batch would learn different feedback")
    return tier
