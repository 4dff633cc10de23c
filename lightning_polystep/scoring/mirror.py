r"""Score: what a layer makes of a change of its inputs, learned from what it makes of random ones.

A product multiplies what its inputs are at a place, :math:`x` of D numbers, with rows of weights. It is run on random
signs x, and the delta rule

.. math:: M \leftarrow M + \frac{1}{n + D} \sum_{i=1}^n (r_i - M x_i)\, x_i^T

brings what M predicts nearer to what it makes of them, r: of n = D inputs, by half of the squared error a step. With
the slopes o of the loss by what the product makes, :math:`M^T o` are the slopes by its inputs.

M is known as a weight mirror (Akrout, Wilson, Humphreys, Lillicrap and Tweed 2019, "Deep learning without weight
transport"). No weight is read, and quantisers, masks and constraints are in it as they act. What it comes to in the end
is the transposed weights, a step or two late: so the docs say, and so the plan.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lightning_polystep.randomness import generator
from lightning_polystep.tape import Entry, Tape

# Inputs that are tried at once, at the most.
_MOST_INPUTS = 256
# Of a mirror that is new, so many halvings of the squared error.
_FIRST_HALVINGS = 8

_MATRIX, _STEP = "matrix", "step"


@dataclass(eq=False, repr=False)
class Mirror:
    """What is known of the products of one set of weights.

    Args:
        name: Of the weights.
        memory: What was learned, which a checkpoint keeps: it is written into.
    """

    name: str
    memory: dict[str, Tensor]

    def learn(self, tape: Tape, entry: Entry, key: tuple[int, int, int]) -> None:
        """Learn from random inputs, once a step: they are the same on all processes, whatever samples these see.

        Args:
            tape: Of the step.
            entry: One of the products.
            key: Seed, step and micro-batch.
        """
        seed, step, _ = key
        if self.memory and int(self.memory[_STEP]) == step:
            return
        learned = self._after(tape, entry, seed, step)
        self.memory.update({_MATRIX: learned, _STEP: torch.tensor(step)})

    def matrix(self, tape: Tape, entry: Entry, key: tuple[int, int, int]) -> Tensor:
        """Return what a change of each input does to each unit, (U, D): as learned, or where nothing is, on trial.

        Args:
            tape: Of the step.
            entry: One of the products.
            key: Seed, step and micro-batch.
        """
        if self.memory:
            return self.memory[_MATRIX].to(tape.values[entry.made].tensor.device)
        on_trial = (self, "on trial")
        if on_trial not in tape.arrays:
            tape.arrays[on_trial] = self._after(tape, entry, *key[:2])
        matrix: Tensor = tape.arrays[on_trial]
        return matrix

    def back(self, tape: Tape, entry: Entry, key: tuple[int, int, int], slopes: Tensor) -> Tensor:
        """Return the slopes of the loss by what a product takes in, as large as that.

        Args:
            tape: Of the step.
            entry: The product.
            key: Seed, step and micro-batch.
            slopes: By what it makes, as large as that.
        """
        matrix, inputs = self.matrix(tape, entry, key), tape.values[entry.inputs].tensor
        if entry.window is None:
            return slopes @ matrix.to(slopes)
        stride, padding, dilation = entry.window
        kernel = matrix.to(slopes).reshape(len(matrix), -1, *entry.kernel)
        sizes = zip(inputs.shape[2:], slopes.shape[2:], entry.kernel, stride, padding, dilation, strict=True)
        left = [own - ((made - 1) * by - 2 * at + apart * (size - 1) + 1) for own, made, size, by, at, apart in sizes]
        transposed = functional.conv_transpose1d if len(entry.kernel) == 1 else functional.conv_transpose2d
        return transposed(slopes, kernel, None, stride, padding, left, 1, dilation)

    @torch.no_grad()
    def _after(self, tape: Tape, entry: Entry, seed: int, step: int) -> Tensor:
        """Return what is known after another step."""
        assert entry.weight is not None
        weight = tape.values[entry.weight].tensor
        weight = weight.T if entry.window is None else weight
        width = math.prod(weight.shape[1:])
        known = self.memory.get(_MATRIX)
        matrix = weight.new_zeros(len(weight), width).float() if known is None else known.to(weight.device)
        count = min(width, _MOST_INPUTS)
        rounds = 1 if known is not None else -(-_FIRST_HALVINGS * width // count)
        for turn in range(rounds):
            draw = generator(seed, step, f"mirror/{self.name}/{turn}")
            signs = (2 * torch.randint(0, 2, (count, width), generator=draw, dtype=torch.int8) - 1).to(weight)
            made = _product(entry, weight, signs).to(matrix)
            signs = signs.to(matrix)
            matrix = matrix + (made - signs @ matrix.T).T @ signs / (count + width)
        return matrix


def _product(entry: Entry, weight: Tensor, inputs: Tensor) -> Tensor:
    """Run a product on inputs of one place each, (n, D); returns (n, U)."""
    if entry.window is None:
        return functional.linear(inputs, weight)
    patches = inputs.reshape(-1, *weight.shape[1:])
    convolve = functional.conv1d if len(entry.kernel) == 1 else functional.conv2d
    return convolve(patches, weight).flatten(1)
