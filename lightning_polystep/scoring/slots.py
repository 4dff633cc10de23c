"""Score: recognise a network with argmax attention over learned key slots.

Feed-forward layers, a :class:`~lightning_polystep.layers.SlotArgmaxAttention`, and feed-forward layers or none. The
slot that a sample takes gates its values, so there are as many experts as slots: the same value projection, each with
the gate of its slot.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lightning_polystep.layers import SlotArgmaxAttention
from lightning_polystep.scoring.feedforward import (
    FeedforwardLayer,
    FeedforwardStack,
    behind_data,
    check_scores,
    read_layers,
)
from lightning_polystep.scoring.routed import RoutedStack
from lightning_polystep.scoring.stack import Criterion, NotAStackError, Pass


class GatedValue(nn.Linear):
    """The values that one slot lets through, as a Linear layer that follows the attention's parameters.

    Args:
        attention: The attention.
        slot: Index of the slot.
    """

    def __init__(self, attention: SlotArgmaxAttention, slot: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = attention.value.in_features, attention.value.out_features
        self._attention = (attention,)  # in a tuple, as it is no child
        self._slot = slot

    @property
    def gate(self) -> Tensor:
        """What multiplies the values, (E,)."""
        return torch.sigmoid(self._attention[0].keys[self._slot])

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The value projection's rows, each times its gate."""
        return self.gate[:, None] * self._attention[0].value.weight

    @property
    def bias(self) -> Tensor | None:  # type: ignore[override]
        """The value projection's bias, times the gate."""
        bias = self._attention[0].value.bias
        return None if bias is None else self.gate * bias

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the gated values, to the bits of the attention."""
        return nn.Linear.forward(self._attention[0].value, inputs) * self.gate


@dataclass(frozen=True)
class SlotStack(RoutedStack):
    """A recognised network with argmax attention over slots; its layer at the choice is the value projection.

    Args:
        attention: The attention.
    """

    attention: SlotArgmaxAttention

    @property
    def keys(self) -> Tensor:
        """The slots' keys, (slots, E)."""
        return self.attention.keys.detach()

    def logits(self, seen: Pass) -> Tensor:
        """Return how well each sample matches each key."""
        return seen.inputs[self.place] @ self.keys.T

    def choice_weight(self) -> Tensor:
        """Return the keys."""
        return self.keys


def read_slots(
    network: nn.Module,
    before: Sequence[nn.Module],
    attention: SlotArgmaxAttention,
    after: Sequence[nn.Module],
    criterion: Criterion,
) -> SlotStack:
    """Read a network with argmax attention over slots.

    Args:
        network: The whole network.
        before: What comes before the attention, in the order in which it runs.
        attention: The attention.
        after: What comes behind it.
        criterion: The loss.

    Raises:
        NotAStackError: Naming what is unknown.
    """
    if type(attention.value) is not nn.Linear:
        raise NotAStackError(f"the attention's values come from a {type(attention.value).__name__}, not a Linear layer")
    if attention.return_indices:
        raise NotAStackError("the attention returns its indices as well")
    front = read_layers(behind_data(before))
    value, *back = read_layers([attention.value, *after])
    check_scores([value, *back])
    slots = (FeedforwardLayer(GatedValue(attention, s), value.activation) for s in range(len(attention.keys)))
    return SlotStack(
        network,
        criterion,
        (*front, value, *back),
        len(front),
        tuple(FeedforwardStack(network, criterion, (*front, slot, *back)) for slot in slots),
        FeedforwardStack(network, criterion, tuple(back)) if back else None,
        attention,
    )
