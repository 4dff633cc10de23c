"""The LightningModule that trains a policy by the returns of its episodes."""

from collections.abc import Mapping
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from lightning_polystep.environments import Policy, Rollouts, environment_named, rollouts


class PolicySearch(pl.LightningModule):
    r"""Maximise the mean return of a policy; a batch is the seeds of its episodes.

    .. math:: L(\theta) = -\frac1N \sum_n R(\pi_\theta, \mathit{seed}_n)

    All candidates of a step are rolled out from the same starts, so that a difference of two losses comes from the
    policies alone. ``evaluate_many`` rolls all of them out in one call. Logs ``{train,val,test}/return``, and
    ``{train,val,test}/length`` in steps.

    Args:
        environment: A name of ``lightning_polystep.environments.ENVIRONMENTS``, whose dynamics are compiled, or what
            else gymnasium registers, "LunarLander-v3", which it plays itself, slower.
        network: A :class:`~models.PolicyNet`, or what else :class:`~lightning_polystep.environments.Policy` takes.

    Raises:
        ValueError: If the environment is unknown, or the network does not fit it.
        ModuleNotFoundError: If the environment is gymnasium's, and gymnasium or what it needs is not installed.

    Example:
        >>> import torch
        >>> from models import PolicyNet, PolicySearch
        >>> search = PolicySearch("CartPole-v1", PolicyNet((4, 16, 2)))
        >>> bool(search.loss(torch.tensor([1, 2, 3])) < 0)
        True
    """

    def __init__(self, environment: str, network: nn.Module) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.environment = environment_named(environment)
        self.network = network
        Policy(network).check(self.environment)
        self.seeds = torch.zeros(0, dtype=torch.int64)

    def forward(self, observations: Tensor) -> Tensor:
        """Return what the policy makes of scaled observations, ``(N, outputs)``."""
        outputs: Tensor = self.network(observations)
        return outputs

    def loss(self, seeds: Tensor) -> Tensor:
        """Return minus the mean return over episodes, a scalar, and remember them for ``evaluate_many``."""
        self.seeds = seeds
        return self._mean_cost(self._rolled_out(seeds), seeds)[0]

    def evaluate_many(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Return the losses of K candidates on the episodes of the latest step, (K,).

        Args:
            parameters: Of this module, by name, (K, ...) each.
        """
        return self._mean_cost(self.candidates_rolled_out(parameters), self.seeds)

    def candidates_rolled_out(self, parameters: Mapping[str, Tensor]) -> Rollouts:
        """Return the rollouts of K candidates on the episodes of the latest step.

        Args:
            parameters: Of this module, by name, (K, ...) each.
        """
        own = {name.removeprefix("network."): values for name, values in parameters.items()}
        return rollouts(self.environment, Policy(self.network, own), self.seeds)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        """Return the loss of a batch of episode seeds and log it."""
        loss = self.loss(batch)
        self.log("train/return", -loss, prog_bar=True, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the returns of episodes that are the same at every validation."""
        self._log("val", batch)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        """Log the returns of episodes that no step and no validation has seen."""
        self._log("test", batch)

    def configure_optimizers(self) -> None:
        """Leave the choice to the strategy, or to the ``optimizer`` section of a LightningCLI configuration."""

    def _rolled_out(self, seeds: Tensor) -> Rollouts:
        return rollouts(self.environment, Policy(self.network), seeds)

    def _log(self, stage: str, seeds: Tensor) -> None:
        result = self._rolled_out(seeds)
        # Several processes divide the episodes: what is logged is of all of them.
        on_epoch: dict[str, Any] = {"on_step": False, "on_epoch": True, "batch_size": len(seeds), "sync_dist": True}
        self.log(f"{stage}/return", result.returns.mean().float(), prog_bar=True, **on_epoch)
        self.log(f"{stage}/length", result.steps.double().mean().float(), **on_epoch)

    @staticmethod
    def _mean_cost(result: Rollouts, seeds: Tensor) -> Tensor:
        return -result.returns.mean(1).float().to(seeds.device)
