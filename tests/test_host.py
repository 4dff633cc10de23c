"""What this package uses of Lightning comes from one of its two packages, and is all there."""

import pytorch_lightning

from lightning_polystep import host


def test_this_process_uses_the_package_that_it_has_imported():
    assert host.pl is pytorch_lightning
    assert host.Callback is pytorch_lightning.callbacks.Callback


def test_all_that_is_named_is_there():
    assert len(host.__all__) == len(set(host.__all__)) > 20
    assert all(getattr(host, name) is not None for name in host.__all__)
