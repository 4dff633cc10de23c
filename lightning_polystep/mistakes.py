"""What torch and Lightning say of common mistakes, and what to do about each, in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

_CURES = [
    (
        r"mat1 and mat2 shapes cannot be multiplied \(\d+x(\d+) and (\d+)x\d+\)",
        "A layer takes {1} numbers and is given {0}: make its size, or the shape of what it is given, fit "
        "(nn.Flatten() makes one row of an image).",
    ),
    (
        r"[Ee]xpected input.* to have (\d+) channels, but got (\d+) channels",
        "A convolution takes {0} channels and is given {1}: make its in_channels, or the axes of the images, fit.",
    ),
    (
        r"Target (-?\d+) is out of bounds",
        "A label is {0}, and the network does not score so many classes: labels lie in 0 ... classes - 1.",
    ),
    (
        r"(?:expected target dtype to be Long or Byte, but got|expected scalar type Long but found) (\w+)",
        "Labels of classes are whole numbers, and these are {0}: pass on y.long().",
    ),
    (
        r"must have the same dtype, but got (\w+) and (\w+)",
        "A layer's weights are {1} and it is given {0}: convert the inputs, x.float() for weights of float32.",
    ),
    (
        r"Expected input batch_size \((\d+)\) to match target batch_size \((\d+)\)",
        "There are {1} labels and {0} rows of scores: a spiking network ends in a readout, such as SpikeCount, which "
        "takes the axis of time away, and no other layer may mix up samples and time.",
    ),
    (
        r"(?:1D target must have size 1, but got target size: |size mismatch \(got input: \[\d+\], target: \[)(\d+)",
        "There are {0} labels, and the scores have no axis of samples: without num_steps a spiking layer takes the "
        "first axis for time, so give the first one num_steps.",
    ),
    (r"multi-target not supported", "Labels have an axis too many: pass on y.squeeze(1)."),
    (
        r"Expected floating point type for target with class probabilities",
        "Labels with an axis of classes count as probabilities: pass on y.argmax(1), or y.float().",
    ),
    (
        r"Expected more than 1 value per channel when training",
        "Batch normalisation needs more than one sample: use larger batches, or drop_last=True in the DataLoader.",
    ),
    (
        r"invalid strategy name: `strategy='(.+?)'`",
        "There is no strategy {0!r}: this package's are polystep, polystep_ddp, polystep_spawn, polystep_fork and "
        "polystep_notebook.",
    ),
    (
        r"element 0 of tensors does not require grad",
        "There is no autograd under PolyStep: leave out loss.backward(), and return the loss.",
    ),
]


def cure_of(error: BaseException) -> str | None:
    """Return what to do about an error of theirs, in a sentence; None for one that is not known.

    Args:
        error: What was raised.

    Example:
        >>> cure_of(RuntimeError("mat1 and mat2 shapes cannot be multiplied (16x4 and 5x2)"))[:39]
        'A layer takes 5 numbers and is given 4:'
    """
    for pattern, cure in _CURES:
        if found := re.search(pattern, str(error)):
            return cure.format(*found.groups())
    return None


@contextmanager
def with_cures() -> Iterator[None]:
    """Add it as a note to errors that leave the body, so that it stands below the traceback.

    Example:
        >>> with with_cures():
        ...     raise IndexError("Target 7 is out of bounds.")
        Traceback (most recent call last):
        IndexError: Target 7 is out of bounds.
        A label is 7, and the network does not score so many classes: labels lie in 0 ... classes - 1.
    """
    try:
        yield
    except Exception as error:
        if (cure := cure_of(error)) is not None and cure not in getattr(error, "__notes__", ()):
            error.add_note(cure)
        raise
