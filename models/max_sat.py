"""The LightningModule of MAX-SAT: one logit per variable, and no network."""

import numpy as np
import pytorch_lightning as pl
from numpy.typing import NDArray
from torch import Tensor

from lightning_polystep.maxsat import UnsatisfiedWeight, WeightedCNF
from lightning_polystep.maxsat.objective import Acceptance


class MaxSAT(pl.LightningModule):
    """Look for an assignment that satisfies most of a formula; the formula comes from the data module.

    A batch is the whole formula, an epoch of k batches is k steps. Logs ``{train,val,test}/loss`` (weight that is not
    satisfied, hard clauses at their penalty), ``/satisfied`` (share of the clauses) and ``/violated`` (hard clauses):
    in training of the current assignment, else of the best.

    Args:
        sweeps: How often all variables are visited in a step, where the transport draws.
        acceptance: "metropolis" or "heat_bath", as in :class:`~lightning_polystep.maxsat.UnsatisfiedWeight`.
        penalty: Weight of a hard clause; by default one more than the soft weight that any one variable touches.
        seed: Of the first assignment.

    Example:
        >>> from datamodules import RandomKSAT
        >>> data, model = RandomKSAT(variables=50), MaxSAT()
        >>> data.setup()
        >>> model.take(data.formula)
        >>> float(model.training_step(data.formula, 0)) > 0
        True
    """

    def __init__(
        self, sweeps: int = 10, acceptance: Acceptance = "metropolis", penalty: int | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        # Of no formula yet; an optimizer may be made before the data is known, and holds its parameter.
        self.objective = UnsatisfiedWeight(
            WeightedCNF.of([]), seed=seed, sweeps=sweeps, acceptance=acceptance, penalty=penalty
        )

    def take(self, formula: WeightedCNF) -> None:
        """Begin with a formula; one with the same clauses changes nothing."""
        if not self.objective.formula.equals(formula):
            self.objective.take(formula)

    def setup(self, stage: str) -> None:
        """Take the formula of the data module, which is set up before the model.

        Raises:
            ValueError: When there is none: MaxSAT is trained with a data module that has a ``formula``.
        """
        del stage
        formula = getattr(getattr(self.trainer, "datamodule", None), "formula", None)
        if not isinstance(formula, WeightedCNF):
            raise ValueError("MaxSAT needs a data module with a formula: datamodules.RandomKSAT or FormulaFile.")
        self.take(formula)

    def training_step(self, batch: WeightedCNF, batch_idx: int) -> Tensor:
        """Return the weight that the current assignment leaves unsatisfied, and log it."""
        objective = self._objective()
        loss: Tensor = objective()
        if self._trainer is not None:
            self._log("train", loss, batch, batch.unsatisfied(objective.assignment()))
        return loss

    def validation_step(self, batch: WeightedCNF, batch_idx: int) -> None:
        """Log what the best assignment so far is worth."""
        self._log_best("val", batch)

    def test_step(self, batch: WeightedCNF, batch_idx: int) -> None:
        """Log what the best assignment so far is worth."""
        self._log_best("test", batch)

    def predict_step(self, batch: WeightedCNF, batch_idx: int) -> Tensor:
        """Return the best assignment so far, shape (n,), bool."""
        return self._objective().best

    def configure_optimizers(self) -> None:
        """Leave the choice to the strategy, or to the ``optimizer`` section of a LightningCLI configuration."""

    def _objective(self) -> UnsatisfiedWeight:
        if not self.objective.formula.clauses:
            raise ValueError("MaxSAT has no formula yet: call take(formula), or fit it with a data module.")
        return self.objective

    def _log_best(self, stage: str, batch: WeightedCNF) -> None:
        objective = self._objective()
        objective()  # so that the current assignment is looked at too
        unsatisfied = batch.unsatisfied(objective.best.cpu().numpy())
        cost, violated = batch.weights[unsatisfied & ~batch.hard].sum(), (unsatisfied & batch.hard).sum()
        self._log(stage, float(int(cost) + objective.search.penalty * int(violated)), batch, unsatisfied)

    def _log(self, stage: str, loss: Tensor | float, batch: WeightedCNF, unsatisfied: NDArray[np.bool_]) -> None:
        # To find these clauses takes a pass through all of them: once for all figures.
        self.log(f"{stage}/loss", loss, batch_size=1)
        self.log(f"{stage}/satisfied", 1.0 - float(unsatisfied.mean()), prog_bar=True, batch_size=1)
        self.log(f"{stage}/violated", float((unsatisfied & batch.hard).sum()), batch_size=1)
