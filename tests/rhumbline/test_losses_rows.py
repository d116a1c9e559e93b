from __future__ import annotations

import math

import pytest
import torch

from rhumbline.losses.rows import report, row_weights, same_rows, surprise, widen


def test_narrow_types_become_fp32_and_fp64_stays():
    types = {torch.bfloat16: torch.float32, torch.float16: torch.float32, torch.int64: torch.float32}
    for narrow, wide in {**types, torch.float32: torch.float32, torch.float64: torch.float64}.items():
        assert widen(torch.ones(2, dtype=narrow)).dtype == wide


def test_no_weights_are_ones_and_weights_take_the_type_of_the_rows():
    like_N = torch.zeros(2, dtype=torch.float64)
    assert row_weights(None, like_N).tolist() == [1.0, 1.0]
    assert row_weights(torch.tensor([0, 3]), like_N).dtype == torch.float64


def test_a_report_has_the_weighted_sums_and_what_to_divide_them_by():
    weights_N, right_N = torch.tensor([2.0, 1.0]), torch.tensor([True, False])
    metrics = report(torch.tensor(0.5, requires_grad=True), weights_N, correct_sum=right_N)
    assert metrics == {"loss": 0.5, "correct_sum": 2.0, "weight_sum": 3.0}


@pytest.mark.parametrize("shapes", [((3, 1), (3,)), ((3,), (2,)), ((2, 2), (2, 2)), ((), ())])
def test_anything_but_vectors_of_one_length_is_refused(shapes):
    # ms-swift's margins (N,) against rewards (N, 1) gave N x N losses (ms-swift pull request 9927).
    with pytest.raises(AssertionError, match="expected vectors of one length"):
        same_rows(*(torch.zeros(shape) for shape in shapes))


def test_a_surprise_is_ln_2_at_0_and_finite_far_out():
    assert surprise(torch.tensor([0.0, 1e4, -1e4])).tolist() == pytest.approx([math.log(2), 0.0, 1e4])
