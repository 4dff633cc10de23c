"""Score: recognise a network with a hard mixture of experts.

Feed-forward layers, a :class:`~lightning_polystep.layers.HardMoE` with a Linear router and feed-forward experts, and
feed-forward layers or none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_polystep.layers import HardMoE
from lightning_polystep.scoring.feedforward import (
    FeedforwardLayer,
    FeedforwardStack,
    behind_data,
    check_scores,
    read_layers,
)
from lightning_polystep.scoring.routed import RoutedStack
from lightning_polystep.scoring.stack import Criterion, NotAStackError, Pass


@dataclass(frozen=True)
class MixtureStack(RoutedStack):
    """A recognised network with a hard mixture of experts; its layer at the choice is the router."""

    def logits(self, seen: Pass) -> Tensor:
        """Return the router's scores."""
        return seen.currents[self.place]

    def choice_weight(self) -> Tensor:
        """Return the router's weight."""
        return self.layers[self.place].linear.weight.detach()


def read_mixture(
    network: nn.Module,
    before: Sequence[nn.Module],
    mixture: HardMoE,
    experts: Sequence[Sequence[nn.Module]],
    after: Sequence[nn.Module],
    criterion: Criterion,
) -> MixtureStack:
    """Read a network with a hard mixture of experts.

    Args:
        network: The whole network.
        before: What comes before the mixture, in the order in which it runs.
        mixture: The mixture.
        experts: The layers of each expert.
        after: What comes behind the mixture.
        criterion: The loss.

    Raises:
        NotAStackError: Naming what is unknown.
    """
    if type(mixture.router) is not nn.Linear:
        raise NotAStackError(f"the mixture's router is a {type(mixture.router).__name__}, not a Linear layer")
    if mixture.return_routing:
        raise NotAStackError("the mixture returns its routing as well")
    front = read_layers(behind_data(before))
    # An activation right behind the mixture is read as that of each expert's last layer.
    routed = [read_layers([*layers, *after]) for layers in experts]
    for layers in routed:
        check_scores(layers)
    stacks = tuple(FeedforwardStack(network, criterion, (*front, *layers)) for layers in routed)
    count = sum(isinstance(child, nn.Linear) for child in after)
    back = routed[0][len(routed[0]) - count :]
    return MixtureStack(
        network,
        criterion,
        (*front, FeedforwardLayer(mixture.router, None), *back),
        len(front),
        stacks,
        FeedforwardStack(network, criterion, back) if back else None,
    )
