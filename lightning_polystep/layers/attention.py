"""Attention layers in which each query takes exactly one value."""

import torch
from torch import Tensor, nn

from lightning_polystep.functional.attention import AttentionOutput, argmax_attention, slot_argmax_attention
from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward


class ArgmaxAttention(nn.Module):
    """Multi-head unique hard attention; see :func:`~lightning_polystep.functional.argmax_attention`.

    In each head every query takes the value of its best key, of equal ones the first; a query whose keys are all masked
    takes zeros. The projections are ``nn.Linear`` children, batch first.

    Args:
        embed_dim: Features of the query and of the output.
        num_heads: Heads, a divisor of ``embed_dim``.
        bias: Whether the projections have biases.
        kdim: Features of the key; ``embed_dim`` by default.
        vdim: Features of the value; ``embed_dim`` by default.
        is_causal: Whether query l may take keys 0 to l only.
        return_indices: Whether to return which key each query took as well.
        on_backward: Whether a gradient that reaches the attention raises or is zero. The output projection after it
            does have a gradient, which autograd computes on its way.

    Raises:
        ValueError: If ``num_heads`` does not divide ``embed_dim`` or ``on_backward`` is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import ArgmaxAttention
        >>> ArgmaxAttention(8, 2)(torch.randn(3, 5, 8)).shape
        torch.Size([3, 5, 8])
    """

    def __init__(
        self,
        embed_dim: int,
        num_heads: int = 1,
        *,
        bias: bool = True,
        kdim: int | None = None,
        vdim: int | None = None,
        is_causal: bool = False,
        return_indices: bool = False,
        on_backward: OnBackward = "raise",
    ) -> None:
        super().__init__()
        check_on_backward(on_backward, "ArgmaxAttention")
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(
                f"ArgmaxAttention: num_heads must divide embed_dim, got {num_heads} heads for {embed_dim} features."
            )
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.is_causal = is_causal
        self.return_indices = return_indices
        self.on_backward = on_backward
        self.q_proj = nn.Linear(embed_dim, embed_dim, bias=bias)
        self.k_proj = nn.Linear(kdim or embed_dim, embed_dim, bias=bias)
        self.v_proj = nn.Linear(vdim or embed_dim, embed_dim, bias=bias)
        self.out_proj = nn.Linear(embed_dim, embed_dim, bias=bias)

    def forward(
        self,
        query: Tensor,
        key: Tensor | None = None,
        value: Tensor | None = None,
        *,
        key_padding_mask: Tensor | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor | AttentionOutput:
        """Attend.

        Args:
            query: ``(..., L, embed_dim)``.
            key: ``(..., S, kdim)``; the query by default.
            value: ``(..., S, vdim)``; the key by default.
            key_padding_mask: Boolean ``(..., S)``, True where a key is padding and may not be taken, as in
                ``nn.MultiheadAttention``.
            attn_mask: Boolean, broadcasts to ``(..., heads, L, S)``; True where a key may be taken, as in
                ``scaled_dot_product_attention``.

        Returns:
            ``(..., L, embed_dim)``; or, with ``return_indices``, an
            :class:`~lightning_polystep.functional.AttentionOutput` with indices ``(..., heads, L)``.
        """
        key = query if key is None else key
        value = key if value is None else value
        heads, indices = argmax_attention(
            self.split_heads(self.q_proj(query)),
            self.split_heads(self.k_proj(key)),
            self.split_heads(self.v_proj(value)),
            self.merge_masks(key_padding_mask, attn_mask),
            is_causal=self.is_causal,
            return_indices=True,
            on_backward=self.on_backward,
            name=f"ArgmaxAttention({self.extra_repr()})",
        )
        output = self.out_proj(heads.transpose(-3, -2).flatten(-2))
        return AttentionOutput(output, indices) if self.return_indices else output

    def extra_repr(self) -> str:
        """Show the sizes, and options where they differ from the plain layer."""
        shown = f"embed_dim={self.embed_dim}, num_heads={self.num_heads}"
        shown += ", is_causal=True" if self.is_causal else ""
        return shown + (", return_indices=True" if self.return_indices else "")

    def merge_masks(self, key_padding_mask: Tensor | None, attn_mask: Tensor | None) -> Tensor | None:
        """Return both masks of :meth:`forward` as one, True where a key may be taken; None if there is neither."""
        if key_padding_mask is None:
            return attn_mask
        if key_padding_mask.dtype != torch.bool:
            name = f"ArgmaxAttention({self.extra_repr()})"
            raise TypeError(f"{name}: key_padding_mask must be boolean, True where a key is padding.")
        real = ~key_padding_mask[..., None, None, :]
        return real if attn_mask is None else real & attn_mask

    def split_heads(self, tokens: Tensor) -> Tensor:
        """Split projected tokens ``(..., L, embed_dim)`` into heads, ``(..., heads, L, embed_dim / heads)``."""
        return tokens.unflatten(-1, (self.num_heads, -1)).transpose(-3, -2)


class SlotArgmaxAttention(nn.Module):
    """The paper's argmax attention; see :func:`~lightning_polystep.functional.slot_argmax_attention`.

    Args:
        embed_dim: Features of the input and of the output.
        num_slots: Number of learned keys.
        return_indices: Whether to return which slot each sample matched as well.
        on_backward: Whether a gradient that reaches the output raises or is zero.

    Raises:
        ValueError: If there is no slot or ``on_backward`` is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import SlotArgmaxAttention
        >>> SlotArgmaxAttention(8)(torch.randn(3, 8)).shape
        torch.Size([3, 8])
    """

    def __init__(
        self, embed_dim: int, num_slots: int = 8, *, return_indices: bool = False, on_backward: OnBackward = "raise"
    ) -> None:
        super().__init__()
        check_on_backward(on_backward, "SlotArgmaxAttention")
        if num_slots < 1:
            raise ValueError(f"SlotArgmaxAttention: num_slots must be at least 1, got {num_slots}.")
        self.keys = nn.Parameter(torch.randn(num_slots, embed_dim) * 0.5)
        self.value = nn.Linear(embed_dim, embed_dim)
        self.return_indices = return_indices
        self.on_backward = on_backward

    def forward(self, x: Tensor) -> Tensor | AttentionOutput:
        """Gate ``(..., embed_dim)`` by the best slot."""
        return slot_argmax_attention(
            x,
            self.keys,
            self.value(x),
            return_indices=self.return_indices,
            on_backward=self.on_backward,
            name=f"SlotArgmaxAttention({self.extra_repr()})",
        )

    def extra_repr(self) -> str:
        """Show the sizes."""
        slots, embed_dim = self.keys.shape
        shown = f"embed_dim={embed_dim}, num_slots={slots}"
        return shown + (", return_indices=True" if self.return_indices else "")
