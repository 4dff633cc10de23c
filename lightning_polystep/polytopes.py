r"""Propose: the regular polytopes whose vertices are probed around a particle, and their random rotations.

A particle of dimension :math:`d` is probed at the vertices :math:`V \in \mathbb{R}^{m \times d}` of a regular polytope
centred at the origin, all of norm 1, turned by a Haar-random rotation :math:`R`
(PolyStep, arXiv 2605.01928, section 3).

==========  ===========  ==================================================
name        vertices m   use
==========  ===========  ==================================================
simplex     d + 1        the fewest candidates
orthoplex   2 d          plus and minus each axis: the default
cube        2 ** d       many candidates in few dimensions
==========  ===========  ==================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_LARGEST_CUBE = 16


@dataclass(frozen=True)
class Polytope:
    """A family of regular polytopes, one per dimension.

    Args:
        name: The name that YAML uses.
        count: Number of vertices m as a function of the dimension d.
        vertices: Vertices, shape (m, d), float64, each of norm 1, summing to zero.
        mirrored: Whether the second half of the vertices is minus the first.
        axial: Whether that first half are the axes, in their order.
    """

    name: str
    count: Callable[[int], int]
    vertices: Callable[[int], Tensor]
    mirrored: bool = False
    axial: bool = False


def simplex(dim: int) -> Tensor:
    r"""Return the d + 1 vertices of the regular simplex, :math:`\langle v_i, v_j \rangle = -1/d` for i != j.

    Args:
        dim: Dimension d of the particle, at least 1.

    Returns:
        Vertices, shape (d + 1, d), float64.

    Example:
        >>> simplex(1).flatten().tolist()
        [1.0, -1.0]
    """
    # Row i has its first i entries fixed by orthogonality with the rows above it and one free entry on the diagonal.
    vertices = torch.zeros(dim + 1, dim, dtype=torch.float64)
    for axis in range(dim):
        head = vertices[axis, :axis]
        vertices[axis, axis] = torch.sqrt(1.0 - head @ head)
        vertices[axis + 1 :, axis] = (-1.0 / dim - vertices[axis + 1 :, :axis] @ head) / vertices[axis, axis]
    return vertices


def orthoplex(dim: int) -> Tensor:
    """Return the 2 d vertices plus and minus each axis: first all plus, then all minus.

    Args:
        dim: Dimension d of the particle, at least 1.

    Returns:
        Vertices, shape (2 d, d), float64.

    Example:
        >>> orthoplex(2).tolist()
        [[1.0, 0.0], [0.0, 1.0], [-1.0, -0.0], [-0.0, -1.0]]
    """
    axes = torch.eye(dim, dtype=torch.float64)
    return torch.cat([axes, -axes])


def cube(dim: int) -> Tensor:
    """Return the 2 ** d corners of the cube, scaled to norm 1.

    Args:
        dim: Dimension d of the particle, 1 to 16.

    Returns:
        Vertices, shape (2 ** d, d), float64.

    Raises:
        ValueError: When the cube would have more than 65,536 corners.

    Example:
        >>> cube(2).shape
        torch.Size([4, 2])
    """
    if dim > _LARGEST_CUBE:
        msg = f"A cube in {dim} dimensions has 2**{dim} corners: set particle_dim to at most {_LARGEST_CUBE}."
        raise ValueError(msg)
    corners = torch.cartesian_prod(*[torch.tensor([1.0, -1.0], dtype=torch.float64)] * dim).reshape(-1, dim)
    return corners / dim**0.5


POLYTOPES: dict[str, Polytope] = {
    "simplex": Polytope("simplex", lambda dim: dim + 1, simplex),
    "orthoplex": Polytope("orthoplex", lambda dim: 2 * dim, orthoplex, mirrored=True, axial=True),
    "cube": Polytope("cube", lambda dim: 2**dim, cube),
}


def haar_rotation(dim: int, generator: torch.Generator) -> Tensor:
    """Draw an orthogonal matrix from the Haar measure: a frame with as many columns as rows.

    Args:
        dim: Size d of the matrix.
        generator: Source of randomness, on the CPU.

    Returns:
        Orthogonal matrix, shape (d, d), float64.
    """
    return haar_frame(dim, dim, generator)


def haar_frame(dim: int, columns: int, generator: torch.Generator) -> Tensor:
    r"""Draw orthonormal columns, uniform among all such frames: the first columns of a Haar-random rotation.

    The Q of a QR factorisation of a Gaussian matrix, its columns' signs fixed by the diagonal of R (Mezzadri 2007,
    "How to generate random matrices from the classical compact groups", section 5).

    Args:
        dim: Rows d.
        columns: Columns k, at most d.
        generator: Source of randomness, on the CPU.

    Returns:
        Orthonormal columns, shape (d, k), float64.

    Example:
        >>> Q = haar_frame(3, 2, torch.Generator().manual_seed(0))
        >>> torch.allclose(Q.T @ Q, torch.eye(2, dtype=torch.float64))
        True
    """
    q, r = torch.linalg.qr(torch.randn(dim, columns, generator=generator, dtype=torch.float64))
    # copysign, not sign: a zero on the diagonal must not erase the column.
    return q * torch.copysign(torch.ones(columns, dtype=torch.float64), r.diagonal())


def biased_rotation(rotation: Tensor, towards: Tensor, bias: float) -> Tensor:
    r"""Lean the first axis of a rotation towards a direction, and keep it a rotation.

    .. math:: q_1 \propto (1 - b)\, r_1 + b\, u, \qquad q_{j} = r_j \text{ orthonormalised against } q_1, \dots, q_{j-1}

    with :math:`r_j` the rows of ``rotation``, which are what it makes of the axes, u = ``towards`` / its length and b =
    ``bias``. Signs are kept: as b goes to 0, q goes to r.

    Args:
        rotation: Orthogonal, shape (d, d), float64.
        towards: Shape (d,), float64; zeros leave the rotation as it is.
        bias: From 0, no lean, to 1, all of it.

    Returns:
        Orthogonal, shape (d, d), float64.

    Example:
        >>> plain = torch.eye(2, dtype=torch.float64)
        >>> biased_rotation(plain, torch.tensor([0.0, 3.0]).double(), bias=1.0)[0].abs().tolist()
        [0.0, 1.0]
    """
    length = towards.norm()
    if bias == 0 or not length > 0:
        return rotation
    leaning = rotation.clone()
    leaning[0] = (1.0 - bias) * rotation[0] + bias * towards / length
    q, r = torch.linalg.qr(leaning.T)
    diagonal = r.diagonal()
    # Where the lean has swallowed an axis, any sign will do.
    return (q * torch.copysign(torch.ones_like(diagonal), diagonal)).T.contiguous()
