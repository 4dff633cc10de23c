"""A network that looks up one token of a sequence by argmax attention."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from lightning_polystep.layers import ArgmaxAttention, QuantActivation
from models.initialisation import unit_preactivations_

_UNIT = 1.0
# Of scores: from -15.9 to 15.9 with 8 bits.
_SCORE_STEP = 0.125


class TokenPairs(nn.Module):
    """Show each token together with the one before it, ``(N, L)`` to ``(N, L, 2 * num_tokens)``, as ones and zeros.

    One attention layer can then find what followed a token, for which tokens alone need two (an induction head); before
    the first token there is none.

    Args:
        num_tokens: Different tokens, 0 ... num_tokens - 1.

    Raises:
        ValueError: In forward, if the input holds anything but token numbers.

    Example:
        >>> import torch
        >>> from models.recall_net import TokenPairs
        >>> TokenPairs(2)(torch.tensor([[1, 0]]))
        tensor([[[0., 1., 0., 0.],
                 [1., 0., 0., 1.]]])
    """

    def __init__(self, num_tokens: int) -> None:
        super().__init__()
        self.num_tokens = num_tokens

    def forward(self, tokens: Tensor) -> Tensor:
        """Look the tokens up."""
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise ValueError(f"TokenPairs: tokens must be integers (N, L), got {tokens.dtype} {tuple(tokens.shape)}.")
        one_hot = functional.one_hot(tokens, self.num_tokens).to(torch.get_default_dtype())
        return torch.cat([one_hot, functional.pad(one_hot[:, :-1], (0, 0, 1, 0))], dim=-1)

    def extra_repr(self) -> str:
        """Show the size of the vocabulary."""
        return f"num_tokens={self.num_tokens}"


class LastTokenAttention(ArgmaxAttention):
    """Let the last token take, in each head, the value of one token before it, ``(N, L, E)`` to ``(N, E)``."""

    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        """Attend."""
        taken = super().forward(tokens[:, -1:], tokens[:, :-1])
        assert isinstance(taken, Tensor)
        return taken.squeeze(1)


class RecallNet(nn.Sequential):
    """One layer of multi-head argmax attention from the last token to all before it, and a linear layer of scores.

    Values, the output projection and the scores have a gradient; queries and keys have none. With ``strict`` scores are
    rounded and no parameter has.

    Args:
        num_tokens: Different tokens.
        num_classes: Different answers.
        num_heads: Heads, a divisor of ``2 * num_tokens``.
        strict: Whether every true gradient is zero.

    Raises:
        ValueError: If ``num_heads`` is no such divisor.

    Example:
        >>> import torch
        >>> from models import RecallNet
        >>> RecallNet()(torch.randint(16, (2, 11))).shape
        torch.Size([2, 8])

    Source:
        Hahn 2020, arXiv 1906.06755 (unique hard attention); Olsson et al. 2022, *In-context learning and induction
        heads*, arXiv 2209.11895 (matching the token before).
    """

    def __init__(self, num_tokens: int = 16, num_classes: int = 8, num_heads: int = 2, strict: bool = False) -> None:
        features = 2 * num_tokens
        attention = LastTokenAttention(features, num_heads)
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            unit_preactivations_(projection, 1 / num_tokens)  # two of the features are 1
        unit_preactivations_(attention.out_proj, _UNIT)
        scores = [QuantActivation(signed=True, scale=_SCORE_STEP)] if strict else []
        head = unit_preactivations_(nn.Linear(features, num_classes), _UNIT)
        super().__init__(TokenPairs(num_tokens), attention, head, *scores)
