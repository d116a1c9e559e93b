"""Probes: the few tokens that a checkpoint's own weights are asked about, so that an engine can prove that it has loaded them.

write("checkpoints/t=1", examples, start="checkpoints/t=0")    # probe.json beside the weights
stored("checkpoints/t=1", encoded)                     # what the weights there say, which is what an engine that reads them must
probe_again("checkpoints/t=0", start=initial)          # of a checkpoint that nobody here trained, such as a merged adapter
prove(said, cases, before=None, accepted={}, tolerance=0.1)    # `said`: what an engine says of the cases' tokens

Every case holds what the learner says of its tokens, and what the policy that training started from says: an engine that has
an adapter loaded and samples from the base is near to the one and not to the other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rhumbline.data.chat import Encoded
from rhumbline.errors import WeightSyncError
from rhumbline.records import Example, Message

NUM_PROBES, PROBE_TOKENS = 4, 64
# Nats per token. The figures of two versions that are nearer than this may be of the same weights. A change that is larger
# alters some of an engine's figures, however little.
NOISE = 1e-4

Rows = Sequence[Sequence[float]]  # per case and learned token a log-probability, nats


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """Tokens, and what the learner says of those that are learned. T learned tokens."""

    encoded: Encoded
    logprobs: Sequence[float]  # (T,) under the checkpoint's weights, nats
    start: Sequence[float] | None = None  # (T,) under those that training started from; None: not known


def prove(
    said: Rows,
    cases: Sequence[Case],
    *,
    before: Rows | None,
    accepted: Mapping[Encoded, Sequence[float]],
    tolerance: float,
) -> float:
    """The mean over tokens of |log p of the engine - log p of the learner|, nats, of an engine that has the cases' weights.

    said: the engine's figures; before: those before the load, None where nothing is known of its weights then or nothing was
    loaded; accepted: the learner's figures of the version that the engine proved last, as far as they are of the same tokens.

    Raises WeightSyncError in three cases. The distance is above `tolerance`. The engine is less than half as far from the
    starting policy, or from the version before, as the learner is: then it is nearer to that than to the learner, and by more
    than it rounds. Or it answers exactly as before although the learner does not, by more than `NOISE`: a small update passes
    the other two although it never arrived.

        learner -1.00, start -1.09, engine -1.08    # 0.08 from the learner and 0.01 from the start, which is 0.09 from it
    """
    told = [case.logprobs for case in cases]
    gap = distance(said, told)
    figures = (
        f"over the probe's tokens log p is {_mean(said):.4f} on average here and {_mean(told):.4f} at the learner, {gap:.4f} "
        "nats apart per token"
    )
    if not gap <= tolerance:
        raise WeightSyncError(
            f"the engine answers with other weights than the learner's: {figures}, at most {tolerance:g} is allowed "
            "(generator.probe_tolerance)"
        )
    earlier = {
        "the version before": [accepted.get(case.encoded) for case in cases],
        "the policy that training started from": [case.start for case in cases],
    }
    moved: float | None = None  # how far the learner went from the first of them that is known
    for whose, rows in earlier.items():
        known = [(a, b, c) for a, b, c in zip(said, told, rows, strict=True) if c is not None]
        if not known:
            continue
        here, learner, old = zip(*known, strict=True)
        went, away = distance(learner, old), distance(here, old)
        if 2 * away < went:
            raise WeightSyncError(
                f"the engine answers with {whose}: it is {away:.4f} nats per token away from that, and the learner "
                f"{went:.4f}; {figures}"
            )
        moved = went if moved is None else moved
    if said == before and moved is not None and moved > NOISE:
        raise WeightSyncError(
            "the engine answers exactly as before, and the learner does not: the weights did not arrive; " + figures
        )
    return gap


def distance(a: Rows, b: Rows) -> float:
    """Mean over all tokens of |a - b|, nats. Raises WeightSyncError where there is nothing to compare."""
    gaps = [abs(x - y) for ours, theirs in zip(a, b, strict=True) for x, y in zip(ours, theirs, strict=True)]
    if not gaps:
        raise WeightSyncError("the weight probe has no tokens to compare: the checkpoint's probe.json is empty")
    return sum(gaps) / len(gaps)


def cut(sample: Encoded) -> Encoded:
    """Its prompt and the first tokens of its answer."""
    end = sample.prompt_length + PROBE_TOKENS
    return Encoded(token_ids=sample.token_ids[:end], loss_mask=sample.loss_mask[:end])


def write(
    folder: Path, examples: Sequence[Example], start: str | Path | None = None, trust_remote_code: bool = False
) -> None:
    """Log-probabilities of a few samples under the weights as they were saved: what an engine must answer with.

    start: the policy that training started from; None: not known.
    """
    from actors.weights import write_probe
    from rhumbline.data.chat import encode
    from rhumbline.learning.policy import load_tokenizer

    tokenizer = load_tokenizer(folder, trust_remote_code)
    encoded = [encode(e.messages, e.response, tokenizer, e.complete) for e in examples]
    # Short ones, so that they fit every engine's context.
    by_length = sorted((e for e in encoded if e.num_learned > 0), key=lambda e: (e.prompt_length, e.token_ids))
    asked = [cut(e) for e in by_length[:NUM_PROBES]]
    rows = stored(folder, asked, trust_remote_code)
    began: Sequence[Sequence[float] | None] = (
        [None] * len(asked) if start is None else stored(start, asked, trust_remote_code)
    )
    write_probe(folder, [Case(encoded=e, logprobs=p, start=s) for e, p, s in zip(asked, rows, began, strict=True)])


def started_from(policy_dir: str, adapter_dir: str | None) -> str | Path | None:
    """The full weights that a training began with: those beside the adapter that it went on with. None: there are none."""
    if adapter_dir is None:
        return policy_dir
    beside = Path(adapter_dir).parent
    return beside if any(beside.glob("model*.safetensors")) else None


def probe_again(folder: Path, start: str | Path | None = None, trust_remote_code: bool = False) -> None:
    """Write the probe of a checkpoint that no learner made here, such as a merged adapter; `start`: what it was made of."""
    text = "A rhumb line crosses every meridian at the same angle."
    user = Message(role="user", content="What is a rhumb line?")
    write(folder, [Example(id="probe", messages=(user,), response=text)], start, trust_remote_code)


def stored(
    policy: str | Path, asked: Sequence[Encoded], trust_remote_code: bool = False, device: str | None = None
) -> list[list[float]]:
    """Log-probabilities of the samples' learned tokens, nats, under the full weights in a folder: in bf16, as they are stored."""
    import torch

    from rhumbline.learning.logprobs import token_logprobs
    from rhumbline.learning.policy import load_policy

    model: Any = load_policy(policy, torch.bfloat16, trust_remote_code, device=device)
    if model.device.type == "cpu":
        # In fp32 where that is cheap: the comparison then carries the rounding of one engine, not of two.
        model = model.float()
    return [row.tolist() for row in token_logprobs(model, asked)]


def _mean(rows: Rows) -> float:
    return sum(map(sum, rows)) / sum(map(len, rows))
