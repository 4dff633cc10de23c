"""Propose: in which directions particles may move. One subspace per file, all of them of one protocol."""

from lightning_polystep.subspaces.full import FullSubspace
from lightning_polystep.subspaces.gaussian import GaussianSubspace
from lightning_polystep.subspaces.inputs import InputSubspace
from lightning_polystep.subspaces.protocol import Subspace

SUBSPACES: dict[str, Subspace] = {
    subspace.name: subspace for subspace in (InputSubspace(), GaussianSubspace(), FullSubspace())
}

__all__ = ["SUBSPACES", "FullSubspace", "GaussianSubspace", "InputSubspace", "Subspace"]
