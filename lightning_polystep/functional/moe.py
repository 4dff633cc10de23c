"""Hard mixture of experts: each sample goes to one expert, and only that one computes."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch._C import _functorch

from lightning_polystep.functional.non_differentiable import OnBackward, non_differentiable

Expert = Callable[[Tensor], Tensor]


class Routing(NamedTuple):
    """Where the samples went.

    Args:
        route: Index of each sample's expert, int64, shape of the samples.
        margin: By how much that expert's score beat the second best, same shape; infinite with one expert.
        load: Number of samples of each expert, int64, ``(experts,)``.
    """

    route: Tensor
    margin: Tensor
    load: Tensor


class MoEOutput(NamedTuple):
    """The samples after their experts, and where they went."""

    output: Tensor
    routing: Routing


def hard_moe(
    x: Tensor,
    scores: Tensor,
    experts: Sequence[Expert],
    *,
    return_routing: bool = False,
    on_backward: OnBackward = "raise",
    name: str = "hard_moe",
) -> Tensor | MoEOutput:
    r"""Send each sample to the expert with the highest score.

    .. math::
        r_n = \min \arg\max_e g_{ne} \qquad y_n = f_{r_n}(x_n)

    where :math:`x` is ``x``, :math:`g` is ``scores`` and :math:`f` are the ``experts``. Of equal scores the lowest
    index wins, and a score of NaN beats all others. The score is no factor of the output: only its order counts. Each
    expert runs once, on its own samples, and not at all where it has none. Under ``torch.func.vmap`` over anything that
    the scores depend on, every expert runs on every sample instead, with the same result up to the rounding of matrix
    products of another size.

    Args:
        x: Samples ``(..., *features)``; the leading dimensions are those of ``scores``.
        scores: Float, ``(..., experts)``.
        experts: Each maps ``(M, *features)`` to ``(M, *outputs)``, sample by sample, all to the same shape and dtype.
        return_routing: Whether to return the routing as well.
        on_backward: Whether a gradient that reaches the output raises
            :class:`~lightning_polystep.functional.NonDifferentiableError` or is zero.
        name: What errors call the operation.

    Returns:
        ``(..., *outputs)``; or, with ``return_routing``, a :class:`MoEOutput`.

    Raises:
        ValueError: If there is no expert, the shapes do not match, or ``on_backward`` is misspelt.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import hard_moe
        >>> x, scores = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[0.0, 1.0], [2.0, 1.0], [5.0, 5.0]])
        >>> hard_moe(x, scores, [torch.neg, torch.square])
        tensor([[ 1.],
                [-2.],
                [-3.]])

    Source:
        Fedus et al. 2022, *Switch transformers*, arXiv 2101.03961, without the gate's factor; arXiv 2605.01928.
    """
    check_experts(x, scores, len(experts), name)
    samples = scores.ndim - 1
    route = scores.detach().argmax(-1)
    flat, flat_route = x.flatten(0, samples - 1), route.flatten()
    computed = (_dense if _is_batched(route) else _grouped)(flat, flat_route, experts)
    output = computed.unflatten(0, scores.shape[:-1])
    # Behind one guard stand the experts, which do have a gradient, and the scores, which have none.
    output = non_differentiable(_first, output, scores, on_backward=on_backward, name=name)
    return MoEOutput(output, _routing(scores.detach(), route)) if return_routing else output


def check_experts(x: Tensor, scores: Tensor, experts: int, name: str) -> None:
    """Refuse scores that do not fit the samples or the experts.

    Args:
        x: To have the leading dimensions of ``scores``.
        scores: To be ``(..., experts)`` with at least one leading dimension.
        experts: To be at least 1.
        name: What the error calls the operation.

    Raises:
        ValueError: If something does not fit.
    """
    if experts < 1:
        raise ValueError(f"{name}: experts must hold at least one.")
    if scores.ndim < 2 or scores.shape[-1] != experts or x.shape[: scores.ndim - 1] != scores.shape[:-1]:
        raise ValueError(
            f"{name}: scores of shape {tuple(scores.shape)} do not give {experts} experts "
            f"for each sample of x of shape {tuple(x.shape)}."
        )


def _grouped(x: Tensor, route: Tensor, experts: Sequence[Expert]) -> Tensor:
    """Run each expert on its samples, and put the samples back in order; x may be batched, the route is not."""
    order = route.argsort(stable=True)
    counts = torch.bincount(route, minlength=len(experts)).tolist()
    groups = x[order].split(counts)
    outputs = [expert(group) for expert, group in zip(experts, groups, strict=True) if len(group)]
    if not outputs:
        return experts[0](x)
    return torch.cat(outputs)[order.argsort()]


def _dense(x: Tensor, route: Tensor, experts: Sequence[Expert]) -> Tensor:
    """Run every expert on every sample and take each sample's own."""
    outputs = torch.stack([expert(x) for expert in experts])
    index = route.view(1, -1, *[1] * (outputs.ndim - 2)).expand(1, *outputs.shape[1:])
    return outputs.gather(0, index).squeeze(0)


def _routing(scores: Tensor, route: Tensor) -> Routing:
    experts = scores.shape[-1]
    if experts == 1:
        margin = torch.full_like(scores[..., 0], torch.inf)
    else:
        best = scores.topk(2, dim=-1).values
        margin = best[..., 0] - best[..., 1]
    load = (route.flatten()[:, None] == torch.arange(experts, device=route.device)).sum(0)
    return Routing(route, margin, load)


def _first(*inputs: Tensor) -> Tensor:
    return inputs[0].clone()


def _is_batched(tensor: Tensor) -> bool:
    """Tell whether vmap holds several values of the tensor, which no data-dependent shape can follow."""
    while _functorch.is_functorch_wrapped_tensor(tensor):
        if _functorch.is_batchedtensor(tensor):
            return True
        tensor = _functorch.get_unwrapped(tensor)
    return False
