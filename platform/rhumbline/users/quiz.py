"""The quiz: comparisons, one at a time, until a person's direction is known well enough. Plain state, no clock, no network.

    quiz = Quiz.start(cone, items_from_run("runs/smol"), seed=7)
    while (question := quiz.question()) is not None:
        quiz.answer(question.index, "a")                   # or "b", or "tie"
    quiz.estimate().direction, quiz.estimate().half_angle_deg
    quiz.more()                                            # three more, however sure it is
    Quiz.from_dict(quiz.to_dict(), items)                  # the same quiz after a restart: plain JSON

The state holds the questions asked with their answers, not particles: those follow from them and the seed, so the same
answers always give the same direction. It stops when the 90% credible half-angle is below `stop_deg`, after max(6, 3K)
questions, or when every prompt has been asked. No prompt comes twice, which answer stands left is chance.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, Self

import numpy as np

from rhumbline.directions import Cone, Direction, angle_deg, normalise
from rhumbline.errors import CodedError, DirectionError, UserError, did_you_mean
from rhumbline.records import Message
from rhumbline.users.pool import QuizItem
from rhumbline.users.posterior import TIE, A, B, ChoiceModel, Particles
from rhumbline.users.questions import CHOOSERS

Choice = Literal["a", "b", "tie"]
Reason = Literal["certain", "limit", "no_questions"]
FORMAT = 1
STOP_DEG = 15.0  # for cones of 45 degrees and wider; narrower ones: a third of their half-angle
MORE = 3
MOST = 60  # questions that one quiz ever asks
PARTICLES = 2048
CANDIDATES = 512  # that one choice looks at
_CODES = {"a": A, "b": B, "tie": TIE}


class QuizError(CodedError):
    """An answer or a state that does not fit the quiz. `code` says which, for programs:

    unknown_choice, answered (another answer counts already), not_the_question, finished, no_questions, bad_state.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What a person is shown."""

    index: int  # from 0
    prompt: str  # one user turn as it is; a longer conversation with its roles
    a: str
    b: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What is known of the person's direction."""

    direction: Direction  # (K,) mean of the posterior, in the cone
    half_angle_deg: float  # the direction lies within this of the mean with 90% probability
    asked: int  # questions answered, a repeated one included
    wedge: tuple[float, float] | None  # K=2: angles in degrees, low and high, of that region within the cone; else None
    beta: float  # how sharply the person chooses, posterior geometric mean; the quiz assumes about 3
    consistent: bool | None  # whether the repeated question was answered alike; None: none was repeated


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """One line of the state."""

    item: str  # QuizItem.id
    prompt_id: str
    d: tuple[float, ...]  # (K,) rewards of the answer shown as a less those of the one shown as b
    choice: Choice | None  # None: waits for an answer
    repeat_of: int | None = None  # index of the question that this repeats, sides swapped; it is no evidence


class Quiz:
    """One person's quiz. Not for two threads at once: whoever stores states lets one change win (`store.People`)."""

    def __init__(self, data: Mapping[str, Any], items: Sequence[QuizItem]) -> None:
        """Use `start` or `from_dict`."""
        self.cone = Cone.from_dict(data["cone"])
        self.seed, self.method = int(data["seed"]), str(data["method"])
        self.model = ChoiceModel(**data["model"])
        self.stop_deg, self.limit = float(data["stop_deg"]), int(data["limit"])
        self.beyond: int | None = data["beyond"]  # questions that `more` asked for, counted from the first
        self.repeat_after: int | None = data["repeat_after"]
        self.log = [Asked(**{**one, "d": tuple(one["d"])}) for one in data["asked"]]
        self._pending = None if data["question"] is None else Question(**data["question"])
        self._items = list(items)
        self._person: Particles | None = None

    # --- a quiz's life ------------------------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        cone: Cone,
        items: Iterable[QuizItem],
        seed: int,
        *,
        method: str = "bald",
        model: ChoiceModel | None = None,
        stop_deg: float | None = None,
        limit: int | None = None,
        repeat_after: int | None = None,
    ) -> Self:
        """A new quiz with its first question.

        method: a key of `questions.CHOOSERS`. stop_deg, limit: by default min(15, half-angle of the cone / 3) degrees and
        max(6, 3K) questions. repeat_after: after so many answers the first question comes again with its sides swapped; it
        counts as asked, says whether the person is consistent, and is no evidence: a person who remembers is not asked
        twice. Raises QuizError (no_questions) where no item tells two directions apart, DirectionError for other objectives.
        """
        pool = list(items)
        wrong = next((one for one in pool if len(one.rewards_a) != len(cone.names)), None)
        if wrong is not None:
            raise DirectionError(
                f"question on prompt {wrong.prompt_id!r} has {len(wrong.rewards_a)} rewards, the cone {len(cone.names)} "
                f"objectives ({', '.join(cone.names)}): take questions from a run of the same recipe"
            )
        if method not in CHOOSERS:
            raise QuizError(
                f"unknown method {method!r}.{did_you_mean(method, CHOOSERS)} Known: {', '.join(CHOOSERS)}", "bad_state"
            )
        quiz = cls(
            {
                "cone": cone.to_dict(),
                "seed": seed,
                "method": method,
                "model": asdict(model or ChoiceModel()),
                "stop_deg": min(STOP_DEG, cone.half_angle_deg / 3) if stop_deg is None else stop_deg,
                "limit": max(6, 3 * len(cone.names)) if limit is None else limit,
                "beyond": None,
                "repeat_after": repeat_after,
                "asked": [],
                "question": None,
            },
            pool,
        )
        if not quiz._open():
            raise QuizError(
                "there are no questions: no two answers of the pool differ in their rewards", "no_questions"
            )
        quiz._ask()
        return quiz

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], items: Iterable[QuizItem] = ()) -> Self:
        """The quiz that `to_dict` wrote, also where the pool has changed since; without items it can be read but asks no more.

        Raises QuizError (bad_state) for anything else.
        """
        if not isinstance(data, Mapping) or data.get("format") != FORMAT:
            found = data.get("format") if isinstance(data, Mapping) else type(data).__name__
            raise QuizError(f"not a quiz of format {FORMAT}: {found}", "bad_state")
        try:
            return cls(data, list(items))
        except (KeyError, TypeError, ValueError, UserError) as e:
            raise QuizError(f"a quiz that cannot be read: {type(e).__name__}: {e}", "bad_state") from e

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON data. It holds the texts of the question that waits and no others."""
        return {
            "format": FORMAT,
            "cone": self.cone.to_dict(),
            "seed": self.seed,
            "method": self.method,
            "model": asdict(self.model),
            "stop_deg": self.stop_deg,
            "limit": self.limit,
            "beyond": self.beyond,
            "repeat_after": self.repeat_after,
            "asked": [{**asdict(one), "d": list(one.d)} for one in self.log],
            "question": None if self._pending is None else self._pending.to_dict(),
        }

    # --- what a person does -------------------------------------------------------------------------------------------

    def question(self) -> Question | None:
        """The question that waits for its answer; None once the quiz is done."""
        return self._pending

    def answer(self, index: int, choice: str) -> None:
        """Take the answer to question `index`, then choose the next one.

        The answer that is there already may come again (a client that tries twice): it counts once. Raises QuizError:
        unknown_choice, answered, finished, not_the_question.
        """
        offered = ("a", "b", "tie") if self.model.ties else ("a", "b")
        if choice not in offered:
            raise QuizError(f"choice {choice!r} is not on offer: expected {', '.join(offered)}", "unknown_choice")
        if 0 <= index < self.asked:
            if self.log[index].choice != choice:
                raise QuizError(
                    f"question {index} was answered {self.log[index].choice!r} before; the first answer counts",
                    "answered",
                )
            return
        if self._pending is None:
            raise QuizError(f"the quiz is finished after {self.asked} questions; ask for more to go on", "finished")
        if index != self._pending.index:
            raise QuizError(f"question {index} was not asked: question {self._pending.index} waits", "not_the_question")
        given: Choice = "a" if choice == "a" else "b" if choice == "b" else "tie"
        self.log[-1] = replace(self.log[-1], choice=given)
        self._pending = None
        if self._person is not None and self.log[-1].repeat_of is None:
            self._person.update([self.log[-1].d], [_CODES[choice]])
        if not self.done:
            self._ask()

    def more(self, count: int = MORE) -> None:
        """Go on for `count` more questions, however sure the estimate is. Raises QuizError (no_questions, finished)."""
        if count < 1:
            raise QuizError(f"more questions: expected at least 1, got {count}", "bad_state")
        if self.asked >= MOST:
            raise QuizError(f"a quiz asks {MOST} questions at most: start a new one", "finished")
        if self._pending is None and not self._open():
            raise QuizError("every prompt has been asked: there are no questions left", "no_questions")
        self.beyond = min(MOST, max(self.asked, self.beyond or 0) + count)
        if self._pending is None:
            self._ask()

    # --- what is known ------------------------------------------------------------------------------------------------

    @property
    def asked(self) -> int:
        """Questions answered."""
        return len(self.log) - (self._pending is not None)

    @property
    def done(self) -> bool:
        """Whether no question waits and none will come without `more`."""
        return self.reason is not None

    @property
    def reason(self) -> Reason | None:
        """Why the quiz is done: certain enough, at its limit, or out of questions. None: it goes on."""
        if self._pending is not None:
            return None
        if self.asked >= MOST:
            return "limit"
        if self.beyond is not None and self.asked < self.beyond:
            return None if self._open() else "no_questions"
        if self.estimate().half_angle_deg < self.stop_deg:
            return "certain"
        if self.asked >= self.limit:
            return "limit"
        return None if self._open() else "no_questions"

    def estimate(self) -> Estimate:
        """The mean direction and its 90% credible region."""
        person = self._particles()
        mean_K = normalise(person.mean()[0])
        half = float(person.half_angle_deg()[0])
        repeats = [(one, self.log[one.repeat_of]) for one in self.log if one.repeat_of is not None and one.choice]
        swapped = {"a": "b", "b": "a", "tie": "tie"}
        return Estimate(
            direction=mean_K,
            half_angle_deg=half,
            asked=self.asked,
            wedge=wedge_deg(self.cone, mean_K, half) if len(mean_K) == 2 else None,
            beta=float(np.exp((person.weights() * person.log_beta_UM).sum(axis=1)[0])),
            consistent=all(swapped[str(now.choice)] == then.choice for now, then in repeats) if repeats else None,
        )

    def state(self) -> dict[str, Any]:
        """What the API shows: question, estimate, done, why, wedge."""
        estimate, question = self.estimate(), self.question()
        return {
            "question": None if question is None else question.to_dict(),
            "estimate": {
                "direction": dict(zip(self.cone.names, estimate.direction, strict=True)),
                "half_angle_deg": estimate.half_angle_deg,
                "asked": estimate.asked,
                "consistent": estimate.consistent,
            },
            "done": self.done,
            "reason": self.reason,
            "limit": max(self.limit, self.beyond or 0),
            "ties": self.model.ties,
            "wedge": None if estimate.wedge is None else list(estimate.wedge),
        }

    # --- inside -------------------------------------------------------------------------------------------------------

    def _particles(self) -> Particles:
        if self._person is None:
            person = Particles(self.cone, np.random.default_rng([self.seed, 0]), particles=PARTICLES, model=self.model)
            for one in self.log:
                if one.choice is not None and one.repeat_of is None:
                    person.update([one.d], [_CODES[one.choice]])
            self._person = person
        return self._person

    def _open(self) -> list[QuizItem]:
        seen = {one.prompt_id for one in self.log}
        return [item for item in self._items if item.prompt_id not in seen and any(item.difference)]

    def _ask(self) -> None:
        index = len(self.log)
        rng = np.random.default_rng([self.seed, 1, index])
        if self.repeat_after is not None and index == self.repeat_after and index > 0:
            first = self.log[0]
            item = next((one for one in self._items if one.id == first.item), None)
            if item is not None:
                self._show(item, swapped=tuple(first.d) == item.difference, repeat_of=0)
                return
        pool = self._open()
        if len(pool) > CANDIDATES:
            pool = [pool[n] for n in sorted(rng.choice(len(pool), CANDIDATES, replace=False).tolist())]
        d_UNK = np.array([[item.difference for item in pool]])
        chosen = CHOOSERS[self.method](self._particles(), d_UNK, np.ones(d_UNK.shape[:2], dtype=bool), rng)
        self._show(pool[int(chosen[0])], swapped=bool(rng.integers(2)), repeat_of=None)

    def _show(self, item: QuizItem, *, swapped: bool, repeat_of: int | None) -> None:
        a, b = (item.b, item.a) if swapped else (item.a, item.b)
        d = tuple(-value for value in item.difference) if swapped else item.difference
        self._pending = Question(index=len(self.log), prompt=as_text(item.prompt), a=a, b=b)
        self.log.append(Asked(item=item.id, prompt_id=item.prompt_id, d=d, choice=None, repeat_of=repeat_of))


def wedge_deg(cone: Cone, direction: Sequence[float], half_angle_deg: float) -> tuple[float, float]:
    """K=2: the angles, low and high, that lie within `half_angle_deg` of `direction` and in the cone."""
    middle = angle_deg(cone.axis)
    off = (angle_deg(direction) - middle + 180) % 360 - 180
    low, high = off - half_angle_deg, off + half_angle_deg
    if cone.half_angle_deg < 180:
        low, high = max(low, -cone.half_angle_deg), min(high, cone.half_angle_deg)
    return middle + low, middle + high


def as_text(prompt: Sequence[Message]) -> str:
    """A prompt for a person to read: one user turn as it is, a longer conversation with its roles."""
    turns = [turn for turn in prompt if turn.role != "system"]
    if len(turns) == 1:
        return turns[0].content
    return "\n\n".join(f"{turn.role}: {turn.content}" for turn in turns)
