"""What proves that an engine has taken weights: figures of two tokens, worked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from actors.probes import NOISE, Case, distance, probe_again, prove, started_from
from actors.weights import read_probe
from rhumbline.data.chat import Encoded
from rhumbline.errors import WeightSyncError
from tests.fakes import tiny_policy

ENCODED = Encoded(token_ids=(1, 2, 3), loss_mask=(False, True, True))
TOLD = (-1.0, -2.0)  # by the learner


def proved(
    said: Sequence[float],
    *,
    start: Sequence[float] | None = None,
    before: Sequence[float] | None = None,
    accepted: Sequence[float] | None = None,
) -> float:
    return prove(
        [said],
        [Case(encoded=ENCODED, logprobs=TOLD, start=start)],
        before=None if before is None else [before],
        accepted={} if accepted is None else {ENCODED: accepted},
        tolerance=0.1,
    )


def test_the_distance_is_the_mean_over_all_tokens() -> None:
    assert distance([[-1.0, -2.0], [-3.0]], [[-1.5, -1.0], [-3.0]]) == pytest.approx((0.5 + 1.0 + 0.0) / 3)
    assert proved([-1.02, -1.94]) == pytest.approx(0.04)
    with pytest.raises(WeightSyncError, match="no tokens"):
        prove([], [], before=None, accepted={}, tolerance=0.1)


def test_above_the_tolerance_both_figures_are_given() -> None:
    with pytest.raises(WeightSyncError, match=r"-1\.6500 on average here and -1\.5000 at the learner, 0\.1500 nats"):
        proved([-1.1, -2.2])
    with pytest.raises(WeightSyncError, match=r"probe_tolerance"):
        proved([float("nan"), -2.0])


@pytest.mark.parametrize("whose", ["start", "accepted"])
def test_an_engine_near_to_older_weights_is_told_under_the_tolerance(whose: str) -> None:
    old = (-1.08, -2.10)  # 0.09 from the learner
    for said, away in (([-1.08, -2.10], 0.0), ([-1.05, -2.05], 0.04)):  # less than half of 0.09
        assert distance([said], [old]) == pytest.approx(away)
        with pytest.raises(
            WeightSyncError, match=rf"{away:.4f} nats per token away from that, and the learner 0\.0900"
        ):
            proved(said, **{whose: old})
    assert proved([-1.04, -2.05], **{whose: old}) == pytest.approx(0.045)  # 0.045 from both: rounding may be as large
    assert proved([-0.97, -2.05], **{whose: old}) == pytest.approx(0.04)


def test_answers_that_stay_the_same_are_an_error_where_the_learner_moved_by_more_than_noise() -> None:
    said = (-1.01, -2.01)  # the engine rounds by 0.01
    for known in ({"start": (-1.001, -2.0)}, {"accepted": (-1.001, -2.0)}):  # 0.0005 on average
        with pytest.raises(WeightSyncError, match="exactly as before"):
            proved(said, before=said, **known)
        assert proved(said, before=(-1.01, -2.0101), **known) == pytest.approx(0.01)
        assert proved(said, before=None, **known) == pytest.approx(0.01)  # nobody knows what it had then
    assert proved(said, before=said, start=(-1.0001, -2.0)) == pytest.approx(0.01)  # an update of nothing
    assert proved(said, before=said) == pytest.approx(0.01)  # nothing is known of the learner's way
    # Since the start it has moved, since the version before, which the engine has, it has not.
    assert proved(said, before=said, start=(-1.004, -2.0), accepted=TOLD) == pytest.approx(0.01)


def test_a_training_that_goes_on_with_an_adapter_begins_with_the_weights_beside_it(tmp_path: Path) -> None:
    assert started_from("embedded", None) == "embedded"
    assert started_from("embedded", str(tmp_path / "adapter")) is None  # an adapter alone
    (tmp_path / "model.safetensors").touch()
    assert started_from("embedded", str(tmp_path / "adapter")) == tmp_path


def test_a_probe_has_the_starting_policys_figures_as_a_checkpoint_of_it_would_give_them(tmp_path: Path) -> None:
    base, trained = tiny_policy(tmp_path / "base"), tiny_policy(tmp_path / "t=1", seed=1)
    for start in (base, trained, None):
        probe_again(trained, start)
        (case,) = read_probe(trained)
        if start is None:
            assert case.start is None
        else:
            assert case.start is not None
            assert (distance([case.logprobs], [case.start]) > NOISE) == (start == base)
