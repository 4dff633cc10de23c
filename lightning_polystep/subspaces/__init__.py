"""Propose: in which directions particles may move. One subspace per file, all of them of one protocol."""

from lightning_polystep.particles import Block
from lightning_polystep.polytopes import POLYTOPES
from lightning_polystep.subspaces.adaptive import AdaptiveSubspace
from lightning_polystep.subspaces.factored import FactoredSubspace
from lightning_polystep.subspaces.flips import FlipSubspace
from lightning_polystep.subspaces.full import FullSubspace
from lightning_polystep.subspaces.gaussian import GaussianSubspace
from lightning_polystep.subspaces.inputs import InputSubspace
from lightning_polystep.subspaces.joint import JointSubspace
from lightning_polystep.subspaces.layer import LayerSubspace
from lightning_polystep.subspaces.protocol import Subspace
from lightning_polystep.subspaces.signs import SignSubspace
from lightning_polystep.subspaces.sparse import SparseSubspace

SUBSPACES: dict[str, Subspace] = {
    subspace.name: subspace
    for subspace in (
        InputSubspace(),
        GaussianSubspace(),
        FullSubspace(),
        FlipSubspace(),
        JointSubspace(),
        SignSubspace(),
        LayerSubspace(),
        FactoredSubspace(),
        SparseSubspace(),
        AdaptiveSubspace(),
    )
}


def particle_dim(block: Block, rank: int) -> int:
    """Return the dimension of a block's particles when ``rank`` directions are probed."""
    return min(SUBSPACES[block.subspace].particle_dim or block.group["particle_dim"] or rank, rank)


def vertices_of_row(block: Block, rank: int, rotations: int) -> int:
    """Return how many candidates a row has.

    Args:
        block: Its block.
        rank: Directions that are probed.
        rotations: Polytopes around each particle.
    """
    dim = particle_dim(block, rank)
    return max(1, rank // dim) * rotations * POLYTOPES[block.group["polytope"]].count(dim)


def directions_wanted(block: Block) -> int:
    """Return how many directions of a row are worth probing, where nobody has said how many."""
    return min(SUBSPACES[block.subspace].full_rank, block.dim)


def candidates_wanted(block: Block) -> int:
    """Return how many candidates all rows have together in all the directions that are wanted."""
    rank = block.group["rank"] or directions_wanted(block)
    return block.rows_in_play * vertices_of_row(block, rank, block.group["rotations"])


__all__ = [
    "SUBSPACES",
    "AdaptiveSubspace",
    "FactoredSubspace",
    "FlipSubspace",
    "FullSubspace",
    "GaussianSubspace",
    "InputSubspace",
    "JointSubspace",
    "LayerSubspace",
    "SignSubspace",
    "SparseSubspace",
    "Subspace",
    "candidates_wanted",
    "directions_wanted",
    "particle_dim",
    "vertices_of_row",
]
