"""Which parameters of a network have a true gradient: ``python -m lightning_polystep audit --config ...``."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from lightning_polystep.functional import true_gradients
from lightning_polystep.host import MisconfigurationException, pl
from lightning_polystep.layers import QuantActivation, calibrate


@dataclass(frozen=True)
class ParameterGradient:
    """What autograd finds for one parameter.

    Args:
        name: Of the parameter.
        shape: Of the parameter.
        nonzero: Elements whose gradient is not zero.
    """

    name: str
    shape: tuple[int, ...]
    nonzero: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return torch.Size(self.shape).numel()


@dataclass(frozen=True)
class Audit:
    """The true gradients of a module on one batch.

    Args:
        rows: One per trainable parameter, in the module's order.
    """

    rows: tuple[ParameterGradient, ...]

    @property
    def share(self) -> float:
        """Share of the numbers that belong to a parameter with a gradient."""
        return self._share(sum(row.elements for row in self.rows if row.nonzero))

    @property
    def nonzero_share(self) -> float:
        """Share of the numbers whose own gradient is not zero."""
        return self._share(sum(row.nonzero for row in self.rows))

    def table(self) -> Table:
        """Return the audit as a table."""
        table = Table(title="True gradients", title_justify="left", caption_justify="left")
        table.add_column("parameter", overflow="fold")
        table.add_column("shape", justify="right", no_wrap=True)
        table.add_column("gradient")
        table.add_column("not zero", justify="right", no_wrap=True)
        for row in self.rows:
            shape = " x ".join(map(str, row.shape)) or "1"
            table.add_row(row.name, shape, "yes" if row.nonzero else "none", f"{row.nonzero / row.elements:.1%}")
        total = sum(row.elements for row in self.rows)
        table.caption = (
            f"{self.share:.1%} of {total:,} numbers are in a parameter with a gradient, "
            f"{self.nonzero_share:.1%} have one that is not zero on this batch"
        )
        return table

    def _share(self, count: int) -> float:
        return count / max(1, sum(row.elements for row in self.rows))


def audit(module: nn.Module, loss: Callable[[], Tensor]) -> Audit:
    """Find which parameters have a gradient that is not zero; ``.grad`` stays as it is.

    The guards of hard layers are taken away (:func:`~lightning_polystep.functional.true_gradients`): every step and
    every choice passes zeros, and what can be differentiated beside it is. A surrogate that the network brings along
    would pass for a true gradient.

    Args:
        module: Holds the parameters; those that do not require a gradient are left out.
        loss: Computes a scalar from them.

    Example:
        >>> import torch
        >>> from lightning_polystep.audit import audit
        >>> from lightning_polystep.layers import Sign
        >>> network = torch.nn.Sequential(torch.nn.Linear(4, 3), Sign(), torch.nn.Linear(3, 2))
        >>> found = audit(network, lambda: network(torch.ones(5, 4)).square().sum())
        >>> [(row.name, row.nonzero > 0) for row in found.rows]
        [('0.weight', False), ('0.bias', False), ('2.weight', True), ('2.bias', True)]
    """
    parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
    # Lightning's evaluation and a strategy's setup may leave inference mode or autograd off behind.
    with torch.inference_mode(False), torch.enable_grad(), true_gradients():
        value = loss()
        gradients: tuple[Tensor | None, ...] = (None,) * len(parameters)
        if value.requires_grad and parameters:
            gradients = torch.autograd.grad(value, list(parameters.values()), allow_unused=True)
    return Audit(
        tuple(
            ParameterGradient(name, tuple(p.shape), 0 if gradient is None else int(gradient.count_nonzero()))
            for (name, p), gradient in zip(parameters.items(), gradients, strict=True)
        )
    )


class AuditTrainer(pl.Trainer):
    """Lightning's Trainer with one method more, which the command line offers as ``audit``."""

    def audit(self, model: pl.LightningModule, datamodule: pl.LightningDataModule | None = None) -> Audit:
        """Print which parameters have a true gradient, on the first training batch; nothing is trained.

        Args:
            model: Its ``training_step`` returns the loss, or a dictionary that holds it as ``"loss"``.
            datamodule: Serves the batch; the model's own loader by default.

        Returns:
            What is printed.

        Raises:
            MisconfigurationException: When there is no batch.
        """
        source: Any = datamodule if datamodule is not None else model
        source.prepare_data()
        source.setup("fit")
        batch = next(iter(source.train_dataloader()), None)
        if batch is None:
            raise MisconfigurationException("The training loader has no batch to audit: give it some data.")
        if any(isinstance(layer, QuantActivation) and not layer.calibrated for layer in model.modules()):
            calibrate(model, [batch], keep_given=True)

        def loss() -> Tensor:
            output: Any = model.training_step(batch, 0)
            return cast("Tensor", output["loss"] if isinstance(output, dict) else output)

        with _without_trainer():
            found = audit(model, loss)
        Console().print(found.table())
        return found


@contextmanager
def _without_trainer() -> Iterator[None]:
    with warnings.catch_warnings():
        # What a step logs has nowhere to go here.
        warnings.filterwarnings("ignore", message=r"You are trying to `self\.log\(\)`")
        yield
