"""What the losses over rows (answers, pairs) do with their tensors before they sum: fp32 or better, one weight per row.

    weights_N = row_weights(weights_N, loss_N)
    loss = (weights_N * loss_N).sum() / denominator
    return loss, report(loss, weights_N, correct_sum=correct_N)

The denominator is the sum of the weights over the whole optimiser step, every micro-batch of every worker, as in
`losses.sft`. So the losses of a step's parts add up to the loss of the step, however it was cut.
"""

from __future__ import annotations

import torch


def widen(values: torch.Tensor) -> torch.Tensor:
    """At least fp32: bf16, half and integers become fp32, fp64 stays as it is."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def surprise(x: torch.Tensor) -> torch.Tensor:
    """-log sigmoid(x), nats, finite for any x: the logarithm of a sigmoid that has underflowed would not be."""
    minus_log: torch.Tensor = -torch.nn.functional.logsigmoid(x)
    return minus_log


def row_weights(weights_N: torch.Tensor | None, like_N: torch.Tensor) -> torch.Tensor:
    """(N,) the weights, in the type and on the device of `like_N`; ones where there are none."""
    if weights_N is None:
        return torch.ones_like(like_N)
    same_rows(weights_N, like_N)
    return weights_N.to(like_N)


def report(loss: torch.Tensor, weights_N: torch.Tensor, **rows_N: torch.Tensor) -> dict[str, float]:
    """The metrics of a loss: `loss` itself, the weighted sum of each of `rows_N`, and `weight_sum` to divide those by.

    Sums, because they add up over micro-batches and workers; taken to the host in one transfer.
    """
    with torch.no_grad():
        sums = [loss, *((weights_N * row_N).sum() for row_N in rows_N.values()), weights_N.sum()]
        return dict(zip(("loss", *rows_N, "weight_sum"), torch.stack(sums).tolist(), strict=True))


def same_rows(*tensors_N: torch.Tensor) -> None:
    """Each of shape (N,). Scores (N, 1) less margins (N,) would be (N, N): every pair with every margin, and no error."""
    shapes = [tuple(tensor.shape) for tensor in tensors_N]
    assert set(shapes) == {(tensors_N[0].numel(),)}, f"expected vectors of one length, got shapes {shapes}"
