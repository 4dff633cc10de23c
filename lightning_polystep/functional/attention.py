"""Unique hard attention: each query takes the value of one key."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward, non_differentiable


class AttentionOutput(NamedTuple):
    """The values taken, and the index of the key that each query took them from (-1 where every key is masked)."""

    output: Tensor
    indices: Tensor


def argmax_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    *,
    is_causal: bool = False,
    return_indices: bool = False,
    on_backward: OnBackward = "raise",
    name: str = "argmax_attention",
) -> Tensor | AttentionOutput:
    r"""Give each query the value of the key with the highest score.

    .. math::
        j_l = \min \arg\max_{s \in A_l} \; q_l \cdot k_s \qquad y_l = v_{j_l}

    where :math:`q`, :math:`k` and :math:`v` are ``query``, ``key`` and ``value`` and :math:`A_l` are the keys that
    ``attn_mask`` and ``is_causal`` leave to query l. Of equal scores the lowest index wins, and a score of NaN beats
    all others. A query without a key to take (every one masked, or every score minus infinity) gets zeros. There is no
    scale 1 / sqrt(E), which would not change the order.

    Args:
        query: Float, ``(..., L, E)``.
        key: ``(..., S, E)``.
        value: ``(..., S, Ev)``.
        attn_mask: Boolean, broadcasts to ``(..., L, S)``; True where a key may be taken, as in
            ``scaled_dot_product_attention``.
        is_causal: Whether query l may take keys 0 to l only.
        return_indices: Whether to return :math:`j` as well.
        on_backward: Whether a gradient raises :class:`~lightning_polystep.functional.NonDifferentiableError` or is
            zero; for the values too, which would have one.
        name: What errors call the operation.

    Returns:
        ``(..., L, Ev)`` in the dtype of ``value``; or, with ``return_indices``, an :class:`AttentionOutput` with
        indices ``(..., L)``, int64.

    Raises:
        TypeError: If ``attn_mask`` is not boolean.
        ValueError: If there is no key, sizes do not match, or ``on_backward`` is misspelt.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import argmax_attention
        >>> tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0], [1.0, 1.0]])
        >>> argmax_attention(tokens, tokens, tokens)
        tensor([[1., 0.],
                [0., 2.],
                [0., 2.]])

    Source:
        Unique hard attention with the leftmost tie: Hahn 2020, arXiv 1906.06755; the tie matters to what it can
        compute, Jerad et al. 2025, arXiv 2503.14615.
    """
    check_attention(query, key, value, attn_mask, name)
    check_on_backward(on_backward, name)
    indices = best_keys(attention_scores(query, key, attn_mask, is_causal=is_causal))
    output = non_differentiable(_take, value, indices, query, key, on_backward=on_backward, name=name)
    return AttentionOutput(output, indices) if return_indices else output


def attention_scores(query: Tensor, key: Tensor, attn_mask: Tensor | None = None, *, is_causal: bool = False) -> Tensor:
    r"""Return the scores that :func:`argmax_attention` chooses by, :math:`q_l \cdot k_s`, without a gradient.

    Args:
        query: Float, ``(..., L, E)``.
        key: ``(..., S, E)``.
        attn_mask: As there.
        is_causal: As there.

    Returns:
        ``(..., L, S)``; minus infinity where a key may not be taken.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional.attention import attention_scores
        >>> tokens = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
        >>> attention_scores(tokens, tokens, is_causal=True)
        tensor([[1., -inf],
                [0., 4.]])
    """
    scores = query.detach() @ key.detach().transpose(-2, -1)
    if attn_mask is not None:
        scores = scores.masked_fill(~attn_mask, -torch.inf)
    if is_causal:
        causal = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~causal, -torch.inf)
    return scores


def best_keys(scores: Tensor) -> Tensor:
    """Return the index of the best key of each query, the first of equal ones; -1 where it has none to take.

    Args:
        scores: ``(..., L, S)``, minus infinity where a key may not be taken.

    Returns:
        ``(..., L)``, int64.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional.attention import best_keys
        >>> best_keys(torch.tensor([[1.0, 3.0, 3.0], [-torch.inf, -torch.inf, -torch.inf]]))
        tensor([ 1, -1])
    """
    return torch.where((scores == -torch.inf).all(-1), -1, scores.argmax(-1))


def slot_argmax_attention(
    x: Tensor,
    keys: Tensor,
    value: Tensor,
    *,
    return_indices: bool = False,
    on_backward: OnBackward = "raise",
    name: str = "slot_argmax_attention",
) -> Tensor | AttentionOutput:
    r"""Gate each sample's value by the key slot that it matches best.

    .. math::
        j_n = \min \arg\max_s \; x_n \cdot k_s \qquad y_n = v_n \odot \sigma(k_{j_n})

    where :math:`x` is ``x``, :math:`k` are ``keys``, :math:`v` is ``value`` and :math:`\sigma` the logistic sigmoid:
    one choice per sample, without tokens. Of equal scores the lowest index wins.

    Args:
        x: Float, ``(..., E)``.
        keys: ``(slots, E)``.
        value: ``(..., E)``.
        return_indices: Whether to return :math:`j` as well.
        on_backward: Whether a gradient raises :class:`~lightning_polystep.functional.NonDifferentiableError` or is
            zero; for ``keys`` and ``value`` too, which would have one.
        name: What errors call the operation.

    Returns:
        ``(..., E)`` in the dtype of ``value``; or, with ``return_indices``, an :class:`AttentionOutput` with indices
        ``(...)``, int64.

    Raises:
        ValueError: If sizes do not match, or ``on_backward`` is misspelt.
        NonDifferentiableError: In backward, with ``on_backward="raise"``.

    Example:
        >>> import torch
        >>> from lightning_polystep.functional import slot_argmax_attention
        >>> keys = torch.tensor([[0.0, 0.0], [9.0, -9.0]])
        >>> slot_argmax_attention(torch.tensor([[-1.0, 0.0], [1.0, 0.0]]), keys, torch.ones(2, 2))
        tensor([[5.0000e-01, 5.0000e-01],
                [9.9988e-01, 1.2339e-04]])

    Source:
        arXiv 2605.01928, the network called argmax attention there.
    """
    if keys.ndim != 2 or len(keys) == 0 or not x.shape[-1] == keys.shape[1] == value.shape[-1]:
        raise ValueError(
            f"{name}: keys of shape {tuple(keys.shape)} are not (slots, E) with at least one slot "
            f"and the E of x {tuple(x.shape)} and value {tuple(value.shape)}."
        )
    indices = (x.detach() @ keys.detach().T).argmax(-1)
    output = non_differentiable(_gate, value, keys, indices, x, on_backward=on_backward, name=name)
    return AttentionOutput(output, indices) if return_indices else output


def check_attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, name: str) -> None:
    """Refuse what does not fit together.

    Args:
        query: To be ``(..., L, E)``.
        key: To be ``(..., S, E)`` with S at least 1.
        value: To be ``(..., S, Ev)``.
        attn_mask: To be None or boolean.
        name: What the error calls the operation.

    Raises:
        TypeError: If the mask is not boolean.
        ValueError: If a size does not match.
    """
    shapes = f"query {tuple(query.shape)}, key {tuple(key.shape)}, value {tuple(value.shape)}"
    if min(query.ndim, key.ndim, value.ndim) < 2 or query.shape[-1] != key.shape[-1]:
        raise ValueError(f"{name}: query and key must be (..., L, E) and (..., S, E), got {shapes}.")
    if key.shape[-2] == 0 or key.shape[-2] != value.shape[-2]:
        raise ValueError(f"{name}: key and value must have the same number of tokens, at least one, got {shapes}.")
    if attn_mask is not None and attn_mask.dtype != torch.bool:
        raise TypeError(f"{name}: attn_mask must be boolean, True where a key may be taken, got {attn_mask.dtype}.")


def _take(value: Tensor, indices: Tensor, *_: Tensor) -> Tensor:
    leading = torch.broadcast_shapes(indices.shape[:-1], value.shape[:-2])
    index = indices.unsqueeze(-1).expand(*leading, indices.shape[-1], value.shape[-1])
    taken = value.expand(*leading, *value.shape[-2:]).gather(-2, index.clamp(min=0))
    return torch.where(index < 0, torch.zeros_like(taken), taken)


def _gate(value: Tensor, keys: Tensor, indices: Tensor, _: Tensor) -> Tensor:
    return value * torch.sigmoid(keys[indices])
