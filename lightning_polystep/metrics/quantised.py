"""How a quantiser's codes are used, by weights or by activations."""

from collections.abc import Iterable

import torch
from torch import Tensor

from lightning_polystep.functional.quantisers import per_output
from lightning_polystep.metrics.counting import CountingMetric, count_indices


class CodeUtilisation(CountingMetric):
    r"""Share of the codes in use.

    .. math::
        u = \frac1K \#\{k \in C : \exists j, q_j = k\}

    where :math:`q` are ``codes`` over everything seen since the last reset, C is the argument ``possible`` and K its
    size.

    Args:
        possible: All codes that the quantiser has, whole numbers: ``range(-127, 128)`` for int8 weights, ``(-1, 1)``
            for binary ones, ``range(16)`` for unsigned activations of 4 bits.

    Raises:
        ValueError: If no code is possible.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import CodeUtilisation
        >>> used = CodeUtilisation(range(4))
        >>> used.update(torch.tensor([0.0, 2.0, 2.0]))
        >>> used.compute()
        tensor(0.5000)
    """

    counts: Tensor

    def __init__(self, possible: Iterable[int]) -> None:
        super().__init__()
        codes = sorted(set(possible))
        if not codes:
            raise ValueError("CodeUtilisation: possible must hold at least one code.")
        self._low, self._high = codes[0], codes[-1]
        self._places = [code - self._low for code in codes]
        self.add_count("counts", self._high - self._low + 1)

    def update(self, codes: Tensor) -> None:
        """Count.

        Args:
            codes: Whole numbers of any dtype and shape, as ``weight_codes()`` and ``codes()`` of the layers return;
                NaN, which has no code, is left out.

        Raises:
            ValueError: If one is no possible code.
        """
        given = codes.detach().flatten()
        given = given[~given.isnan()] if given.is_floating_point() else given
        whole = given.long()
        # Infinities, which no integer can hold, fail the comparison as well.
        outside = (whole < self._low) | (whole > self._high) | (whole.to(given.dtype) != given)
        counts = count_indices(whole[~outside] - self._low, len(self.counts), "CodeUtilisation", "codes")
        allowed = torch.zeros_like(counts, dtype=torch.bool)
        allowed[self._places] = True
        if bool(outside.any()) or bool(counts[~allowed].any()):
            raise ValueError(
                f"CodeUtilisation: {len(self._places)} codes from {self._low} to {self._high} are possible, got others."
            )
        self.counts += counts

    def compute(self) -> Tensor:
        """Return u, a scalar in [0, 1]; NaN if there was no code."""
        seen = self.counts.sum().clamp(max=1)
        return ((self.counts > 0).sum() * seen) / (len(self._places) * seen)


class ClipFraction(CountingMetric):
    r"""Share of values that a quantiser clips.

    .. math::
        c = \frac{\#\{j : \operatorname{round}(x_j / s) \notin [l, h]\}}{\#\{j\}}

    where :math:`x` is ``x``, :math:`s` is ``scale``, :math:`l` is ``low`` and :math:`h` is ``high``. The negative
    values of an unsigned quantiser (l = 0) are its ReLU and not counted as clipped.

    Args:
        low: Smallest code.
        high: Largest code.

    Raises:
        ValueError: If ``high`` is not above ``low``.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import ClipFraction
        >>> clipped = ClipFraction(0, 3)
        >>> clipped.update(torch.tensor([-1.0, 0.3, 0.8, 9.0]), torch.tensor(0.5))
        >>> clipped.compute()
        tensor(0.2500)
    """

    clipped: Tensor
    values: Tensor

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        if not low < high:
            raise ValueError(f"ClipFraction: high must be above low, got {low} and {high}.")
        self.low, self.high = low, high
        self.add_count("clipped")
        self.add_count("values")

    def update(self, x: Tensor, scale: Tensor) -> None:
        """Count.

        Args:
            x: Float, what is quantised: activations of any shape, or a weight ``(out, ...)``.
            scale: ``()``; or ``(out,)``, one per output channel of a weight.
        """
        codes = (x.detach() / per_output(scale, max(1, x.ndim), x.dtype)).round()
        outside = codes > self.high
        if self.low != 0:
            outside |= codes < self.low
        self.clipped += outside.sum()
        self.values += x.numel()

    def compute(self) -> Tensor:
        """Return c, a scalar in [0, 1]; NaN if there was no value."""
        return self.clipped / self.values


class FlipRate(CountingMetric):
    r"""Share of codes that a step changed.

    .. math::
        f = \frac{\#\{j : q_j \neq q'_j\}}{\#\{j\}}

    where :math:`q` are the codes ``before`` and :math:`q'` those ``after`` a step.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import FlipRate
        >>> flips = FlipRate()
        >>> flips.update(torch.tensor([-1.0, 1.0, 1.0, 1.0]), torch.tensor([1.0, 1.0, 1.0, 1.0]))
        >>> flips.compute()
        tensor(0.2500)

    Source:
        Helwegen et al. 2019, arXiv 1906.02107, who watch it in binary networks.
    """

    flipped: Tensor
    codes: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_count("flipped")
        self.add_count("codes")

    def update(self, before: Tensor, after: Tensor) -> None:
        """Count.

        Args:
            before: Codes, of any shape and dtype.
            after: The codes at the same places, one step later.

        Raises:
            ValueError: If the shapes differ.
        """
        if before.shape != after.shape:
            raise ValueError(
                f"FlipRate: before and after must have the same shape, got {tuple(before.shape)} and "
                f"{tuple(after.shape)}."
            )
        self.flipped += (before != after).sum()
        self.codes += before.numel()

    def compute(self) -> Tensor:
        """Return f, a scalar in [0, 1]; NaN if there was no code."""
        return self.flipped / self.codes
