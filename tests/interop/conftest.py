"""What the tests of other libraries' networks start from."""

import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def brevitas_in_training_mode() -> Iterator[None]:
    """Undoes what one network's ``eval()`` does to the others: Brevitas builds all of them around one clamp."""
    yield
    if "brevitas.nn" in sys.modules:
        sys.modules["brevitas.nn"].QuantIdentity(bit_width=8).train()
