"""A layer of experts, of which each sample uses one."""

from collections.abc import Iterable

from torch import Tensor, nn

from lightning_polystep.functional.moe import MoEOutput, hard_moe
from lightning_polystep.functional.non_differentiable import OnBackward, check_on_backward


class HardMoE(nn.Module):
    """Hard mixture of experts with top-1 routing; see :func:`~lightning_polystep.functional.hard_moe`.

    Args:
        experts: Modules with the same shape of input and of output, each of which treats samples one by one.
        router: Module that scores the experts, ``(..., features)`` to ``(..., experts)``; or the number of features,
            for an ``nn.Linear``.
        return_routing: Whether to return where the samples went as well.
        on_backward: Whether a gradient that reaches the output raises or is zero.

    Raises:
        ValueError: If there is no expert or ``on_backward`` is misspelt.

    Example:
        >>> import torch
        >>> from lightning_polystep.layers import HardMoE
        >>> layer = HardMoE([torch.nn.Linear(4, 2) for _ in range(3)], router=4, return_routing=True)
        >>> output, routing = layer(torch.randn(5, 4))
        >>> output.shape, int(routing.load.sum())
        (torch.Size([5, 2]), 5)
    """

    def __init__(
        self,
        experts: Iterable[nn.Module],
        router: nn.Module | int,
        *,
        return_routing: bool = False,
        on_backward: OnBackward = "raise",
    ) -> None:
        super().__init__()
        check_on_backward(on_backward, "HardMoE")
        self.experts = nn.ModuleList(experts)
        if len(self.experts) == 0:
            raise ValueError("HardMoE: experts must hold at least one module.")
        self.router = nn.Linear(router, len(self.experts)) if isinstance(router, int) else router
        self.return_routing = return_routing
        self.on_backward = on_backward

    def forward(self, x: Tensor) -> Tensor | MoEOutput:
        """Send each sample through its expert.

        Args:
            x: ``(..., features)``, as the router and the experts take it.

        Returns:
            ``(..., outputs)``; or, with ``return_routing``, a :class:`~lightning_polystep.functional.MoEOutput`.
        """
        return hard_moe(
            x,
            self.router(x),
            list(self.experts),
            return_routing=self.return_routing,
            on_backward=self.on_backward,
            name=f"HardMoE({len(self.experts)} experts)",
        )

    def extra_repr(self) -> str:
        """Show whether the routing is returned."""
        return "return_routing=True" if self.return_routing else ""
