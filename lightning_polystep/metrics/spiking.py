"""How much spiking neurons fire."""

import torch
from torch import Tensor

from lightning_polystep.metrics.counting import CountingMetric, check_at_least


class SpikeRate(CountingMetric):
    r"""Share of neurons, samples and time steps with a spike.

    .. math::
        r = \frac{\#\{(t, n, i) : s_{tni} \neq 0\}}{\#\{(t, n, i)\}}

    where :math:`s` is ``spikes``, t counts time steps, n samples and i neurons. 1 - r is the activation sparsity.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import SpikeRate
        >>> rate = SpikeRate()
        >>> rate.update(torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]]))
        >>> rate.compute()
        tensor(0.7500)

    Source:
        Yik et al. 2025, *NeuroBench*, arXiv 2304.04640 (activation sparsity).
    """

    spikes: Tensor
    places: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_count("spikes")
        self.add_count("places")

    def update(self, spikes: Tensor) -> None:
        """Count.

        Args:
            spikes: Zeros and ones of any dtype, ``(T, N, ...)``; the rate is the same for any other order.
        """
        self.spikes += torch.count_nonzero(spikes)
        self.places += spikes.numel()

    def compute(self) -> Tensor:
        """Return r, a scalar in [0, 1]; NaN if there was no place for a spike."""
        return self.spikes / self.places


class _NeuronFraction(CountingMetric):
    """Base of what looks at every neuron's own rate."""

    spikes: Tensor
    steps: Tensor

    def __init__(self, num_neurons: int) -> None:
        super().__init__()
        self.num_neurons = check_at_least(num_neurons, 1, type(self).__name__, "num_neurons")
        self.add_count("spikes", self.num_neurons)
        self.add_count("steps")

    def update(self, spikes: Tensor) -> None:
        """Count.

        Args:
            spikes: Zeros and ones of any dtype, ``(T, N, ...)``; the dimensions after the second are the neurons'.

        Raises:
            ValueError: If there are not ``num_neurons`` neurons.
        """
        if spikes.ndim < 2 or spikes.shape[2:].numel() != self.num_neurons:
            raise ValueError(
                f"{type(self).__name__}: spikes must be (T, N, ...) with {self.num_neurons} neurons, "
                f"got {tuple(spikes.shape)}."
            )
        steps = spikes.shape[0] * spikes.shape[1]
        self.spikes += torch.count_nonzero(spikes.reshape(steps, self.num_neurons), dim=0)
        self.steps += steps

    def _share(self, neurons: Tensor) -> Tensor:
        # Zero steps say nothing of any neuron: 0 / 0.
        seen = self.steps.clamp(max=1)
        return (neurons.sum() * seen) / (self.num_neurons * seen)


class DeadNeuronFraction(_NeuronFraction):
    r"""Share of neurons that never fired.

    .. math::
        d = \frac1U \#\{i : \textstyle\sum_{tn} s_{tni} = 0\}

    where :math:`s` is ``spikes`` over everything seen since the last reset and U is ``num_neurons``. It falls as more
    samples are seen, so compare runs on the same data.

    Args:
        num_neurons: U.

    Raises:
        ValueError: If ``num_neurons`` is below 1.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import DeadNeuronFraction
        >>> dead = DeadNeuronFraction(2)
        >>> dead.update(torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]))
        >>> dead.compute()
        tensor(0.5000)
    """

    def compute(self) -> Tensor:
        """Return d, a scalar in [0, 1]; NaN if there was no time step."""
        return self._share(self.spikes == 0)


class SaturatedNeuronFraction(_NeuronFraction):
    r"""Share of neurons that fired always, or nearly.

    .. math::
        a = \frac1U \#\{i : \textstyle\sum_{tn} s_{tni} \ge \rho\, T N\}

    where :math:`s` is ``spikes`` over everything seen since the last reset, T N its time steps times samples,
    :math:`\rho` is ``rate`` and U is ``num_neurons``. Such a neuron tells samples apart no more than a dead one.

    Args:
        num_neurons: U.
        rate: Share of steps, above 0 and at most 1, from which on a neuron counts as saturated.

    Raises:
        ValueError: If ``num_neurons`` is below 1 or ``rate`` is out of range.

    Example:
        >>> import torch
        >>> from lightning_polystep.metrics import SaturatedNeuronFraction
        >>> saturated = SaturatedNeuronFraction(2)
        >>> saturated.update(torch.tensor([[[0.0, 1.0]], [[0.0, 1.0]]]))
        >>> saturated.compute()
        tensor(0.5000)
    """

    def __init__(self, num_neurons: int, rate: float = 1.0) -> None:
        super().__init__(num_neurons)
        if not 0 < rate <= 1:
            raise ValueError(f"SaturatedNeuronFraction: rate must be above 0 and at most 1, got {rate}.")
        self.rate = rate

    def compute(self) -> Tensor:
        """Return a, a scalar in [0, 1]; NaN if there was no time step."""
        return self._share(self.spikes >= self.rate * self.steps)
