from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rhumbline.losses import PAIRED_LOSSES
from rhumbline.losses.dpo import dpo, ipo, modpo

LN3 = math.log(3)  # sigmoid(ln 3) = 3/4
NAMES = ("chosen_P", "rejected_P", "reference_chosen_P", "reference_rejected_P", "chosen_tokens_P", "rejected_tokens_P")
Pairs = dict[str, torch.Tensor]


def pairs(*columns: list[float], dtype: torch.dtype = torch.float64) -> Pairs:
    """Pairs from the columns of `NAMES`; without the last two, answers of one token."""
    tokens = [1.0] * len(columns[0])
    columns = (*columns, *([tokens] * (6 - len(columns))))
    values = [torch.tensor(column, dtype=dtype if n < 4 else torch.int64) for n, column in enumerate(columns)]
    return dict(zip(NAMES, values, strict=True))


def gap(value: float, dtype: torch.dtype = torch.float64) -> Pairs:
    """One pair with the log-ratios `value` and 0."""
    return pairs([value - 7.0], [-5.0], [-7.0], [-5.0], dtype=dtype)


def sample(seed: int = 0, num: int = 5) -> Pairs:
    generator = torch.Generator().manual_seed(seed)
    logps = [torch.randn(num, generator=generator, dtype=torch.float64) - 20 for _ in range(4)]
    tokens = [torch.randint(1, 9, (num,), generator=generator) for _ in range(2)]
    return dict(zip(NAMES, (*logps, *tokens), strict=True))


def options_of(name: str, num: int = 5) -> dict[str, Any]:
    """Every option of a loss at once."""
    generator = torch.Generator().manual_seed(1)
    options: dict[str, Any] = {"beta": 0.4, "weights_P": torch.rand(num, generator=generator)}
    if name != "ipo":
        options |= {"label_smoothing": 0.1, "margin_P": torch.randn(num, generator=generator)}
    return options


def test_loss_metrics_and_gradient_by_hand():
    # beta 1/2. Log-ratios 2 ln 3 and 0, then ln 3 and ln 3: gaps of reward ln 3 and 0, -ln 3/4 and -ln 1/2.
    columns = pairs([2 * LN3 - 4, LN3 - 2], [-6.0, LN3 - 3], [-4.0, -2.0], [-6.0, -3.0], [4.0, 2.0], [6.0, 3.0])
    learned = {name: columns[name].requires_grad_() for name in NAMES[:4]}
    loss, metrics = dpo(**columns, denominator=2.0, beta=0.5)
    total = math.log(4 / 3) + math.log(2)
    assert metrics == {
        "loss": pytest.approx(total / 2),
        "chosen_reward_sum": pytest.approx(1.5 * LN3),
        "rejected_reward_sum": pytest.approx(0.5 * LN3),
        "margin_sum": pytest.approx(LN3),
        "correct_sum": pytest.approx(1.5),
        "chosen_logp_sum": pytest.approx(3 * LN3 - 6),
        "rejected_logp_sum": pytest.approx(LN3 - 9),
        "chosen_tokens_sum": 6.0,
        "rejected_tokens_sum": 9.0,
        "weight_sum": 2.0,
    }
    loss.backward()
    # d / d log-ratio of the chosen: -beta (1 - sigmoid(gap)) / 2, which is -1/16 and -1/8; the reference has none.
    gradients = [tensor.grad for tensor in learned.values()]
    assert gradients[2:] == [None, None]
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert gradients[0].tolist() == [pytest.approx(-1 / 16), pytest.approx(-1 / 8)]
    assert gradients[1].tolist() == [pytest.approx(1 / 16), pytest.approx(1 / 8)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 0.3])
def test_the_first_step_is_the_logarithm_of_two_exactly(dtype, label_smoothing):
    reference = sample(num=4)
    logps = [reference[name].to(dtype) for name in ("chosen_P", "rejected_P")]
    loss, _ = dpo(*logps, *logps, *([torch.ones(4)] * 2), 4.0, beta=0.37, label_smoothing=label_smoothing)
    assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert loss == torch.tensor(math.log(2), dtype=loss.dtype)


def test_label_smoothing_by_hand():
    # The pair as labelled, and the same pair the other way round.
    loss, _ = dpo(**gap(LN3), denominator=1.0, beta=1.0, label_smoothing=0.1)
    assert float(loss) == pytest.approx(0.9 * math.log(4 / 3) + 0.1 * math.log(4))


def test_a_margin_is_subtracted_and_turns_with_the_pair():
    # x = 0 - ln 3: -ln 1/4 as labelled, -ln 3/4 the other way round. The reward's own gap stays what it was.
    margin_P = torch.tensor([LN3])
    for smoothing in (0.0, 0.1):
        loss, metrics = dpo(**gap(0.0), denominator=1.0, beta=1.0, label_smoothing=smoothing, margin_P=margin_P)
        assert float(loss) == pytest.approx((1 - smoothing) * math.log(4) + smoothing * math.log(4 / 3))
        assert (metrics["margin_sum"], metrics["correct_sum"]) == (0.0, 0.0)


def test_modpo_by_hand():
    # (beta gap - w_1 g_1 - w_2 g_2) / w_0 = (0.5 * 4 ln 3 - 0.25 * 2 ln 3 - 0.25 * 4 ln 3) / 0.5 = ln 3.
    gaps_PK = torch.tensor([[float("nan"), 2 * LN3, 4 * LN3]], dtype=torch.float64)
    beta, margin_P = modpo(gaps_PK, (0.5, 0.25, 0.25), learned=0, beta=0.5)
    assert (beta, margin_P.tolist()) == (1.0, [pytest.approx(3 * LN3)])
    loss, _ = dpo(**gap(4 * LN3), denominator=1.0, beta=beta, margin_P=margin_P)
    assert float(loss) == pytest.approx(math.log(4 / 3))


def test_modpo_with_all_weight_on_the_pairs_is_dpo_and_the_objectives_may_stand_in_any_order():
    gaps_PK = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    beta, margin_P = modpo(gaps_PK, (0.0, 1.0, 0.0), learned=1)
    assert (beta, margin_P.tolist()) == (0.1, [0.0] * 5)
    assert modpo(gaps_PK[:, :1], (1.0,), learned=0)[1].tolist() == [0.0] * 5  # no other objective
    order = [2, 0, 1]
    _, there = modpo(gaps_PK, (0.5, 0.2, 0.3), learned=2)
    _, moved = modpo(gaps_PK[:, order], (0.3, 0.5, 0.2), learned=0)
    assert torch.allclose(there, moved)


def test_modpo_of_an_unwanted_objective_divides_by_the_size_of_its_weight():
    gaps_PK = torch.tensor([[math.nan, 2.0]], dtype=torch.float64)
    beta, margin_P = modpo(gaps_PK, (-0.5, 0.25), learned=0, beta=0.5)
    assert (beta, margin_P.tolist()) == (1.0, [1.0])  # 0.5 / 0.5, 0.25 * 2 / 0.5


def test_modpo_needs_weight_on_its_pairs_and_a_gap_for_each_weight():
    with pytest.raises(AssertionError, match=r"weight 0\.0, expected another than 0"):
        modpo(torch.zeros(1, 2), (0.0, 1.0), learned=0)
    with pytest.raises(AssertionError, match=r"gaps \(1, 3\) for 2 weights"):
        modpo(torch.zeros(1, 3), (0.5, 0.5), learned=0)


def test_ipo_by_hand_is_of_means_over_tokens():
    # Log-ratios 8 over 4 tokens and -3 over 3: h = 2 + 1, target 1 / (2 * 1/4) = 2, (3 - 2)^2. Of sums it were (11 - 2)^2.
    columns = pairs([8.0 - 9], [-3.0 - 5], [-9.0], [-5.0], [4.0], [3.0])
    columns["chosen_P"].requires_grad_()
    loss, metrics = ipo(**columns, denominator=1.0, beta=0.25)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(1.0)
    assert columns["chosen_P"].grad is not None
    assert columns["chosen_P"].grad.tolist() == [pytest.approx(2 * 1.0 / 4)]  # 2 (h - target) / tokens
    rewards = [metrics[name] for name in ("chosen_reward_sum", "rejected_reward_sum", "margin_sum", "correct_sum")]
    assert rewards == pytest.approx([0.5, -0.25, 0.75, 1.0])
    assert (metrics["chosen_logp_sum"], metrics["chosen_tokens_sum"]) == (-1.0, 4.0)


def test_ipo_draws_the_gap_of_rewards_to_a_half_and_not_beyond():
    # beta 1/4: h = 2 is a reward gap of 1/2.
    losses = [float(ipo(**gap(value), denominator=1.0, beta=0.25)[0]) for value in (1.0, 2.0, 3.0)]
    assert losses == pytest.approx([1.0, 0.0, 1.0])
    assert ipo(**gap(2.0), denominator=1.0, beta=0.25)[1]["margin_sum"] == pytest.approx(0.5)


@pytest.mark.parametrize("side", ["chosen", "rejected"])
def test_ipo_refuses_an_answer_without_tokens(side):
    columns = gap(1.0) | {f"{side}_tokens_P": torch.tensor([0])}
    with pytest.raises(AssertionError, match=f"a {side} answer without"):
        ipo(**columns, denominator=1.0)


def test_jpo_compares_answers_to_different_prompts_and_is_dpo_where_the_prompt_is_the_same():
    answers = gap(LN3)
    jpo = PAIRED_LOSSES["jpo"]
    # Prompts whose log-ratios are 2 ln 3 and ln 3 as well: x = ln 3 + 2 ln 3 - ln 3.
    different = answers | {
        "chosen_P": answers["chosen_P"] + 2 * LN3 - 30,
        "reference_chosen_P": answers["reference_chosen_P"] - 30,
        "rejected_P": answers["rejected_P"] + LN3 - 11,
        "reference_rejected_P": answers["reference_rejected_P"] - 11,
    }
    loss, _ = jpo(**different, denominator=1.0, beta=1.0)
    assert float(loss) == pytest.approx(math.log(1 + 1 / 9))
    same = answers | {name: answers[name] + LN3 - 30 for name in ("chosen_P", "rejected_P")}
    same |= {name: answers[name] - 30 for name in ("reference_chosen_P", "reference_rejected_P")}
    assert float(jpo(**same, denominator=1.0, beta=1.0)[0]) == pytest.approx(math.log(4 / 3))


@pytest.mark.parametrize("name", PAIRED_LOSSES)
def test_columns_are_refused(name):
    with pytest.raises(AssertionError, match="expected vectors"):
        PAIRED_LOSSES[name](**gap(1.0) | {"rejected_P": torch.zeros(1, 1)}, denominator=1.0)
    with pytest.raises(AssertionError, match="expected vectors"):
        PAIRED_LOSSES[name](**gap(1.0), denominator=1.0, weights_P=torch.ones(1, 1))


def test_a_column_of_margins_is_refused():
    with pytest.raises(AssertionError, match="expected vectors"):
        dpo(**gap(1.0), denominator=1.0, margin_P=torch.zeros(1, 1))


@pytest.mark.parametrize("name", PAIRED_LOSSES)
def test_every_pair_is_a_comparison_of_its_own(name):
    columns, options = sample(), options_of(name)
    whole, _ = PAIRED_LOSSES[name](**columns, denominator=3.0, **options)
    moved = torch.tensor([3, 0, 4, 1, 2])
    tensors = {key for key, value in options.items() if isinstance(value, torch.Tensor)}
    options |= {key: options[key][moved] for key in tensors}
    same, _ = PAIRED_LOSSES[name](**{key: value[moved] for key, value in columns.items()}, denominator=3.0, **options)
    assert torch.allclose(whole, same, rtol=1e-12)


@pytest.mark.parametrize("name", PAIRED_LOSSES)
@pytest.mark.parametrize("cut", [0, 1, 4])
def test_micro_batches_with_one_denominator_add_up_to_the_whole(name, cut):
    # Cut 0: a worker that has no pair in this step.
    columns, options = sample(), options_of(name)
    columns["chosen_P"].requires_grad_()
    denominator = float(options["weights_P"].sum())
    whole, metrics = PAIRED_LOSSES[name](**columns, denominator=denominator, **options)
    (expected,) = torch.autograd.grad(whole, columns["chosen_P"])
    pieces = []
    for part in (slice(0, cut), slice(cut, None)):
        of_part = {key: value[part] if isinstance(value, torch.Tensor) else value for key, value in options.items()}
        rows = {key: value[part] for key, value in columns.items()}
        pieces.append(PAIRED_LOSSES[name](**rows, denominator=denominator, **of_part))
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in pieces), columns["chosen_P"])
    assert torch.allclose(gradient, expected, rtol=1e-12)
    for key, value in metrics.items():
        assert sum(piece[key] for _, piece in pieces) == pytest.approx(value)


@pytest.mark.parametrize("name", PAIRED_LOSSES)
def test_gradient_by_finite_difference(name):
    columns, options = sample(), options_of(name)
    chosen_P, rejected_P = (columns.pop(side).requires_grad_() for side in ("chosen_P", "rejected_P"))
    assert torch.autograd.gradcheck(
        lambda c, r: PAIRED_LOSSES[name](c, r, **columns, denominator=2.5, **options)[0], (chosen_P, rejected_P)
    )


@pytest.mark.parametrize("value", [-1e6, 1e6])
def test_extreme_log_ratios_are_finite_and_a_confident_mistake_keeps_its_gradient(value):
    for name, at_least in (("dpo", 1.0 if value < 0 else 0.0), ("ipo", 1.0)):
        columns = gap(value, torch.float32)
        columns["chosen_P"].requires_grad_()
        loss, metrics = PAIRED_LOSSES[name](**columns, denominator=1.0, beta=1.0)
        loss.backward()
        assert all(math.isfinite(metric) for metric in metrics.values())
        assert columns["chosen_P"].grad is not None
        assert at_least <= float(columns["chosen_P"].grad.abs()) < 1e7


@pytest.mark.parametrize("name", PAIRED_LOSSES)
def test_bf16_log_probabilities_are_subtracted_in_fp32_and_no_number_is_not_hidden(name):
    # 1 - 2^-9 has too many bits for bf16.
    columns = pairs([1.0], [0.0], [2.0**-9], [0.0], dtype=torch.bfloat16)
    loss, metrics = PAIRED_LOSSES[name](**columns, denominator=1.0, beta=1.0)
    assert loss.dtype == torch.float32
    assert metrics["chosen_reward_sum"] == 1 - 2.0**-9
    assert math.isnan(PAIRED_LOSSES[name](**gap(math.nan), denominator=1.0)[1]["loss"])
