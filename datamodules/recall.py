"""Associative recall: pairs of a key and a value, then one of the keys; the answer is its value."""

import torch
from torch import Tensor

from datamodules.in_memory import InMemoryDataModule
from datamodules.tensors import TensorImages
from lightning_polystep.randomness import generator

# Of drawing before a vocabulary counts as too small: from a large one, two find enough.
_MOST_ROUNDS = 20


class AssociativeRecall(InMemoryDataModule):
    """Sequences ``k1 v1 k2 v2 ... kP vP q`` whose label is the value behind that key which equals q.

    Token numbers are 0 ... num_keys - 1 for keys and num_keys ... num_keys + num_values - 1 for values; labels are
    0 ... num_values - 1. No key and no value comes twice in a sequence, so that who knows which tokens a sequence has,
    and the query, but not which value follows which key, is right in one case of ``num_pairs`` at best: to swap values
    changes the answer and none of that. All sequences are drawn at once, and none is in two sets.

    Args:
        num_pairs: Pairs P in a sequence, which has 2 P + 1 tokens.
        num_keys: Different keys, at least ``num_pairs``.
        num_values: Different values, at least ``num_pairs``.
        train_size: Sequences to train on.
        val_size: Sequences for validation.
        test_size: Sequences for the test.
        data_seed: Decides, alone, which sequences are in which set.
        batch_size: Sequences per batch.
        num_workers: Processes that fetch; with whole tensors in memory 0 is the fastest.
        drop_last: Whether a last training batch that is not full is left out.

    Raises:
        ValueError: If a number is below 1, there are too few keys or values for the pairs, or too few sequences in all
            for three sets without repetition.

    Example:
        >>> from datamodules import AssociativeRecall
        >>> data = AssociativeRecall(num_pairs=2, num_keys=3, num_values=4, train_size=50, val_size=10, test_size=10)
        >>> data.setup()
        >>> tokens, label = data.train_set[0]
        >>> tokens.shape, bool(tokens[2 * tokens[:-1:2].eq(tokens[-1]).int().argmax() + 1] == label + 3)
        (torch.Size([5]), True)

    Source:
        Ba et al. 2016, *Using fast weights to attend to the recent past*, arXiv 1610.06258, section 4.1; Arora et al.
        2023, *Zoology*, arXiv 2312.04927, on why it needs attention.
    """

    def __init__(  # noqa: PLR0913 - each option has a default
        self,
        num_pairs: int = 5,
        num_keys: int = 8,
        num_values: int = 8,
        *,
        train_size: int = 12_800,
        val_size: int = 2_000,
        test_size: int = 4_000,
        data_seed: int = 0,
        batch_size: int = 256,
        num_workers: int = 0,
        drop_last: bool = False,
    ) -> None:
        super().__init__(batch_size, num_workers, drop_last)
        sizes = {"num_pairs": num_pairs, "train_size": train_size, "val_size": val_size, "test_size": test_size}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}.")
        for name, kinds in (("num_keys", num_keys), ("num_values", num_values)):
            if kinds < num_pairs:
                raise ValueError(
                    f"{name} must be at least num_pairs, {num_pairs}, so that none comes twice; got {kinds}."
                )
        self.num_pairs = num_pairs
        self.num_keys = num_keys
        self.num_values = num_values
        self.data_seed = data_seed
        self.set_sizes = (train_size, val_size, test_size)

    def setup(self, stage: str | None = None) -> None:
        """Draw all sequences; which of them is in which set depends on no stage."""
        del stage
        tokens, labels = self._draw(sum(self.set_sizes))
        self.train_set, self.val_set, self.test_set = (
            TensorImages(*part) for part in zip(tokens.split(self.set_sizes), labels.split(self.set_sizes), strict=True)
        )

    def _draw(self, count: int) -> tuple[Tensor, Tensor]:
        """Draw different sequences in random order, (count, 2 P + 1), and their labels, (count,)."""
        draw = generator(self.data_seed, 0, "associative recall")
        known = torch.empty(0, 2 * self.num_pairs + 2, dtype=torch.int64)
        for _ in range(_MOST_ROUNDS):
            known = torch.cat([known, self._any(count, draw)]).unique(dim=0)
            if len(known) >= count:
                chosen = known[torch.randperm(len(known), generator=draw)[:count]]
                return chosen[:, :-1].contiguous(), chosen[:, -1].contiguous()
        raise ValueError(
            f"{count} different sequences of {self.num_pairs} pairs were not found among {self.num_keys} keys and "
            f"{self.num_values} values (but {len(known)}): lower train_size, or raise num_keys or num_values."
        )

    def _any(self, count: int, draw: torch.Generator) -> Tensor:
        """Draw sequences with their labels in the last column, some of them perhaps twice."""
        keys, values = (
            torch.rand(count, kinds, generator=draw).argsort(1)[:, : self.num_pairs]
            for kinds in (self.num_keys, self.num_values)
        )
        asked = torch.randint(self.num_pairs, (count, 1), generator=draw)
        pairs = torch.stack([keys, self.num_keys + values], dim=2).flatten(1)
        return torch.cat([pairs, keys.gather(1, asked), values.gather(1, asked)], dim=1)
