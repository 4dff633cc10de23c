"""A transformer of hard attention reverses tokens: ``python -m benchmarks.reversal --threads 1``.

Twelve tokens of ten words; every token has to tell the word at its mirrored place, which only attention brings there.
Blocks of width 64 with a LayerNorm before hard attention of one head and before an MLP, cross-entropy of each token;
batches of 128 of random tokens, a cosine over the seconds of training; tokens that are right of 1,000 new sequences,
after so many processor seconds, beside:

* control: queries and keys keep their random first weights, all else is trained by PolyStep;
* Adam: hard attention has no gradient, so that queries and keys stay as they are too;
* soft: Adam on the same network with softmax attention in its place, which another network then learns.

Prints a table, then one line of JSON.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.common import finish, make_parser, prepare, show
from lightning_polystep import Engine, PolyStep
from lightning_polystep.layers import ArgmaxAttention

WORDS, TOKENS, WIDTH, BATCH, TESTED = 10, 12, 64, 128, 1000
WAYS = ("ours", "control", "adam", "soft")


class SoftAttention(nn.Module):
    """Softmax attention of one head in the place of the hard one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 1, batch_first=True)

    def forward(self, tokens: Tensor) -> Tensor:
        """Attend, (N, L, width)."""
        attended: Tensor = self.attention(tokens, tokens, tokens, need_weights=False)[0]
        return attended


class Block(nn.Module):
    """Attention and an MLP, each behind a LayerNorm and added to what goes in.

    Args:
        attention: Of this block.
    """

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.norm1, self.attention, self.norm2 = nn.LayerNorm(WIDTH), attention, nn.LayerNorm(WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.ReLU(), nn.Linear(2 * WIDTH, WIDTH))

    def forward(self, tokens: Tensor) -> Tensor:
        """Return tokens, (N, L, width)."""
        tokens = tokens + self.attention(self.norm1(tokens))
        mixed: Tensor = tokens + self.mlp(self.norm2(tokens))
        return mixed


class Transformer(nn.Module):
    """Words and learned places, blocks, and scores of each token.

    Args:
        blocks: How many.
        attention: Makes the attention of a block.
    """

    def __init__(self, blocks: int, attention: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, WIDTH), nn.Parameter(torch.randn(TOKENS, WIDTH))
        self.blocks = nn.Sequential(*(Block(attention()) for _ in range(blocks)))
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, words: Tensor) -> Tensor:
        """Return scores, (N, L, words)."""
        scores: Tensor = self.head(self.blocks(self.words(words) + self.places))
        return scores


def train(way: str, blocks: int, rate: float, seconds: float, seed: int) -> dict[str, float]:
    """Train in one way; return the share of tokens that are right in the end, steps and seconds.

    Args:
        way: One of ``WAYS``.
        blocks: Of the transformer.
        rate: At first.
        seconds: Of processor time, the first step included.
        seed: Of first weights, batches and candidates.
    """
    torch.manual_seed(seed)
    draw = torch.Generator().manual_seed(seed)
    network = Transformer(
        blocks, SoftAttention if way == "soft" else lambda: ArgmaxAttention(WIDTH, on_backward="zero")
    )
    if way == "control":
        for name, parameter in network.named_parameters():
            parameter.requires_grad_("q_proj" not in name and "k_proj" not in name)
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]

    def batch(count: int) -> tuple[Tensor, Tensor]:
        words = torch.randint(0, WORDS, (count, TOKENS), generator=draw)
        return words, words.flip(1)

    def loss(words: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(network(words).flatten(0, 1), targets.flatten())

    optimizer: torch.optim.Optimizer
    if way in {"ours", "control"}:
        ours = optimizer = PolyStep(trained, lr=rate, seed=seed)
        engine = Engine(network, ours, announce=None)

        def step(words: Tensor, targets: Tensor) -> None:
            engine.step(lambda: loss(words, targets))
    else:
        optimizer = torch.optim.Adam(trained, lr=rate)

        def step(words: Tensor, targets: Tensor) -> None:
            optimizer.zero_grad()
            loss(words, targets).backward()
            optimizer.step()

    spent, steps = 0.0, 0
    while spent < seconds:
        for group in optimizer.param_groups:
            group["lr"] = 0.5 * rate * (1 + math.cos(math.pi * spent / seconds))
        words, targets = batch(BATCH)
        began = time.process_time()
        step(words, targets)
        spent, steps = spent + time.process_time() - began, steps + 1
    words, targets = batch(TESTED)
    with torch.no_grad():
        right = float((network(words).argmax(-1) == targets).float().mean())
    return {"right": right, "steps": steps, "seconds": spent}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print.

    Args:
        arguments: Of the command line; those of the process by default.
    """
    parser = make_parser(__doc__)
    parser.add_argument("--blocks", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=60.0, help="of training, each way")
    parser.add_argument("--seeds", type=int, default=3, help="how many, from --seed on")
    parser.add_argument("--rate", type=float, default=0.03, help="of PolyStep")
    parser.add_argument("--adam-rate", type=float, default=0.003)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    options = parser.parse_args(arguments)
    if options.quick:
        options.blocks, options.seconds, options.seeds = 1, 0.1, 1
    prepare(options)
    results: dict[str, list[dict[str, float]]] = {}
    for way in options.ways:
        rate = options.rate if way in {"ours", "control"} else options.adam_rate
        seeds = range(options.seed, options.seed + options.seeds)
        results[way] = [train(way, options.blocks, rate, options.seconds, seed) for seed in seeds]
    rows = [
        [way, ", ".join(f"{100 * run['right']:.1f}" for run in runs), ", ".join(f"{run['steps']:.0f}" for run in runs)]
        for way, runs in results.items()
    ]
    notes = [f"{options.blocks} blocks, {options.seconds:g} processor seconds, seeds from {options.seed}; chance 10 %"]
    show("Tokens that are right", ["trained by", "% of tokens", "steps"], rows, notes)
    finish("reversal", options, results)


if __name__ == "__main__":
    main()
