"""Direct costs of scores on CUDA: a program owns a block of candidates of one class and a share of the samples."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lightning_polystep.kernels.feedforward import Scores, target_weights
from lightning_polystep.kernels.one_logit import one_logit

_SAMPLES = 64  # per program
_BLOCK = 128  # candidates per program


def score_direct_costs(shifts: Tensor, *head_arguments: object) -> Tensor:
    """See :func:`lightning_polystep.kernels.score_direct_costs`."""
    head = Scores(*head_arguments)  # type: ignore[arg-type]
    (samples, classes), count = head.scores.shape, shifts.shape[-1]
    scores, weight = head.scores.double(), target_weights(head)
    by_entropy = head.loss == "cross_entropy"
    pieces = one_logit(scores, weight) if by_entropy else (weight, weight, weight, (scores - weight) ** 2)
    parts = triton.cdiv(samples, _SAMPLES)
    costs = shifts.new_zeros((parts, classes, count), dtype=torch.float64)
    if count:
        _kernel[(classes, triton.cdiv(count, _BLOCK), parts)](
            shifts.contiguous(),
            head.scores.contiguous(),
            *(piece.contiguous() for piece in pieces),
            costs,
            samples,
            classes,
            count,
            1 if shifts.ndim == 3 else 0,
            BY_ENTROPY=by_entropy,
            SAMPLES=_SAMPLES,
            BLOCK=_BLOCK,
            enable_fp_fusion=False,
        )
    total = costs.sum(0)  # of a fixed number of parts, in a fixed order
    return total if by_entropy else total / classes


@triton.jit
def _kernel(
    shifts_ptr,
    scores_ptr,
    rest_ptr,
    weight_ptr,
    total_ptr,
    base_ptr,
    costs_ptr,
    samples,
    classes,
    count,
    shift_stride,
    BY_ENTROPY: tl.constexpr,
    SAMPLES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    c, part = tl.program_id(0), tl.program_id(2)
    v = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = v < count
    cost = tl.zeros([BLOCK], tl.float64)
    own = (c * shift_stride).to(tl.int64) * samples
    for sample in range(part * SAMPLES, tl.minimum(part * SAMPLES + SAMPLES, samples)):
        row = sample * classes + c
        shift = tl.load(shifts_ptr + (own + sample) * count + v, mask=inside, other=0.0)
        score = (tl.load(scores_ptr + row) + shift).to(tl.float64)
        weight, base = tl.load(weight_ptr + row), tl.load(base_ptr + row)
        if BY_ENTROPY:
            rest = tl.load(rest_ptr + row)
            partition = tl.maximum(rest, score) + tl.log(1.0 + tl.exp(-tl.abs(rest - score)))
            cost += tl.load(total_ptr + sample) * partition - weight * score - base
        else:
            error = score - weight
            cost += error * error - base
    tl.store(costs_ptr + (part * classes + c) * count + v, cost, mask=inside)
