"""Costs of candidates for a layer of ReLU or of linear units, interpolated between a few of their responses."""

import torch
from torch import Tensor

from lightning_polystep.kernels.dispatch import Kernel, Tensors
from lightning_polystep.kernels.feedforward import Behind, Scores, check_behind, check_scores
from lightning_polystep.kernels.relu_grid_costs.reference import Limits

_NAME = "relu_grid_costs"
_KERNEL = Kernel(_NAME)
_FEWEST_NODES = 3


@torch.library.custom_op("polystep::relu_grid_costs", mutates_args=())
def relu_grid_costs(
    preactivation: Tensor,
    shifts: Tensor,
    behind_preactivations: Tensors,
    behind_boundaries: Tensors,
    behind_levels: Tensors,
    weights: Tensors,
    scores: Tensor,
    target: Tensor,
    loss: str = "cross_entropy",
    label_smoothing: float = 0.0,
    floor: float = 0.0,
    nodes: int = 9,
    gain: Tensor | None = None,
    lower: Tensor | None = None,
    upper: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    r"""Sum over the batch how each candidate of one ReLU changes the loss, approximately.

    Candidate (u, v) changes the value of unit u by

    .. math:: \delta_{nuv} = \max(f, a_{nu} + g_{nu} s_{nv}) - \max(f, a_{nu})

    on sample n, as in :func:`~lightning_polystep.kernels.relu_direct_costs.relu_direct_costs`, which follows each of
    these changes through the layers behind. Here about ``nodes`` changes of a unit and a sample are followed, evenly
    spaced from the lowest to the highest of its candidates, 0 among them; the loss T between two of them is
    interpolated:

    .. math:: C_{uv} = \sum_{n:\, l_{nu} \le \delta_{nuv} \le r_{nu}} o_n + (1 - w) \, T_{nu}(d_k)
              + w \, T_{nu}(d_{k+1}), \qquad d_k \le \delta_{nuv} = (1 - w) \, d_k + w \, d_{k+1} .

    No change costs nothing, exactly. Where T bends with a second derivative :math:`T''`, a cost is off by at most
    :math:`h^2 T'' / 8` per sample, h the distance of two nodes: with 9 nodes by 2 % of what the bend makes of the
    largest change, or less. Results do not depend on the number of threads.

    Args:
        preactivation: a, (N, U), float32 or float64, as is every float tensor here unless it says otherwise; finite.
        shifts: s, times the probe radius, (N, V), the same for all units, or (U, N, V).
        behind_preactivations: Of each layer behind, (N, H).
        behind_boundaries: Of each layer behind, (D, P); empty for ReLU.
        behind_levels: Of each layer behind, (D, P + 1); empty for ReLU.
        weights: One more than layers behind: (H, U), and so on; the last is (C, H), or (C, U).
        scores: (N, C).
        target: (N,) int64 classes, or (N, C) in any float dtype.
        loss: ``"cross_entropy"``, or ``"mse"``, the mean over classes.
        label_smoothing: Of a cross-entropy.
        floor: f, the least value of a unit; minus infinity for a linear unit.
        nodes: Points of the grid, as many or one more or less; at least 3.
        gain: g, what a unit makes of its shifts, (N, U); 1 by default.
        lower: l, (N, U): candidates with smaller changes cost nothing; minus infinity by default.
        upper: r, (N, U): the same for larger changes; infinity by default.
        offset: o, what all others cost more, (N,); 0 by default.

    Returns:
        C, (U, V), float64.

    Raises:
        TypeError: If a dtype is wrong.
        ValueError: If a shape, an option, a class or the number of layers or nodes is wrong.

    Example:
        A unit that the score copies; the score should be 2. The loss of a change d is d^2 - 4 d, and the grid has the
        nodes -2, 0 and 2.

        >>> import torch
        >>> relu_grid_costs(
        ...     torch.tensor([[2.0]]),
        ...     torch.tensor([[-1.0, 0.0, 1.0, 2.0]]),
        ...     [],
        ...     [],
        ...     [],
        ...     [torch.ones(1, 1)],
        ...     torch.zeros(1, 1),
        ...     torch.tensor([[2.0]]),
        ...     loss="mse",
        ...     nodes=3,
        ... )
        tensor([[ 6.,  0., -2., -4.]], dtype=torch.float64)
    """
    head = Scores(scores, target, loss, label_smoothing)
    behind = Behind(tuple(behind_preactivations), tuple(behind_boundaries), tuple(behind_levels), tuple(weights))
    check_scores(head, _NAME)
    check_behind(behind, head, preactivation, shifts, _NAME)
    if nodes < _FEWEST_NODES:
        raise ValueError(f"{_NAME}: nodes must be at least {_FEWEST_NODES}, got {nodes}.")
    limits = Limits.of(preactivation, gain, lower, upper, offset)
    for role, value in limits._asdict().items():
        shape = preactivation.shape[: value.ndim]
        if value.shape != shape and value.numel() != 1:
            raise ValueError(f"{_NAME}: {role} must have shape {tuple(shape)}, got {tuple(value.shape)}.")
        if value.dtype != preactivation.dtype:
            raise TypeError(f"{_NAME}: {role} must be {preactivation.dtype}, got {value.dtype}.")
    return _KERNEL(preactivation, shifts, behind, floor, nodes, limits, *head)


@relu_grid_costs.register_fake
def _fake(preactivation: Tensor, shifts: Tensor, *_: object, **__: object) -> Tensor:
    return preactivation.new_empty((preactivation.shape[1], shifts.shape[-1]), dtype=torch.float64)
