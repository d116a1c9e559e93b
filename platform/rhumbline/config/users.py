"""The recipe of jobs/users.py: whose choices are read, what is asked of a served model, and how the answers are measured.

    recipe = load_users("jobs/recipes/users/polis.yaml", ["endpoint.url=http://localhost:8000/v1"])
    recipe.people.kind                     # 'votes'

Without `endpoint` and `rewards` the job describes the people and measures the predictions that need no model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from rhumbline.config.reading import build, read
from rhumbline.config.sections import Section
from rhumbline.errors import ConfigError

Value = str | bool | int | float
Method = Literal["anonymous", "roleplay", "fewshot"]


# --- whose choices ----------------------------------------------------------------------------------------------------


class People(Section):
    """What every kind of data says besides its own."""

    path: str  # JSONL(.gz), Parquet or a hub name; relative to where the job is started
    portrait: str | None = (
        None  # how a profile is told, such as 'a person known for {persona}'; None: its lines as they are
    )
    pairs: bool = False  # of each question two answers, drawn by the seed; people who chose another one drop out of it
    min_answers: int = Field(1, gt=0)  # people who chose less often are left out
    min_users: int = Field(1, gt=0)  # and so are questions at which fewer people chose
    max_users: int | None = Field(None, gt=0)  # drawn by the seed
    max_questions: int | None = Field(None, gt=0)


class Votes(People):
    """People who agree, disagree or pass on statements: three files that join on item_id and user_id."""

    kind: Literal["votes"] = "votes"  # path: user_id, item_id, score (1 agree, 0 pass, -1 disagree)
    items: str  # item_id, response (the statement), topic, and what `where` picks by
    users: str | None = None  # user_id, profile.opinion_group: to check results with; no predictor sees it
    where: dict[str, Value | list[Value]] = Field(default={})  # columns of `items`


class Statements(People):
    """Personas that would say a statement, or would not: user_id, profile, prompt, chosen and rejected."""

    kind: Literal["statements"] = "statements"


class Domains(People):
    """One prompt answered in several styles; each style stands for a reader who prefers it to the others."""

    kind: Literal["domains"] = "domains"  # path: prompt, responses (style -> text)


class TwoObjectives(People):
    """The same two answers under two objectives: <judge>_objective and <judge>_winner of the judges human and model."""

    kind: Literal["objectives"] = "objectives"


class StatedPreferences(People):
    """A stated preference, and options of which one fits it: user_id, profile, prompt, options, aligned_option."""

    kind: Literal["preferences"] = "preferences"
    history: str | None = None  # a file with `messages` by user_id: what is told of a person instead of the preference


class Judges(People):
    """Comparisons by named judges, of any file that `rhumbline data inspect` takes for comparisons."""

    kind: Literal["comparisons"] = "comparisons"
    winner: str | None = None  # columns, as of `comparisons` in a recipe of jobs/reward.py
    profile: str | None = None
    where: dict[str, Value | list[Value]] = Field(default={})


class Simulated(People):
    """People who weigh an answer's ratings by weights on the simplex; of a question only answers that no other one dominates."""

    kind: Literal["simulated"] = "simulated"  # path: rated answers, several to a prompt
    ratings: list[str] | None = None  # their names, in the order of the weights; None: all of the file
    law: Literal["random", "clusters"] = "random"  # clusters: three of different tastes, over four ratings
    num_users: int = Field(100, ge=2)  # one of them weighs all ratings the same
    options: int = Field(4, ge=2, le=26)  # answers that a question keeps at most


Source = Annotated[
    Votes | Statements | Domains | TwoObjectives | StatedPreferences | Judges | Simulated,
    Field(discriminator="kind"),
]


# --- what is done with them -------------------------------------------------------------------------------------------


class Analysis(Section):
    neighbours: int = Field(5, gt=0)  # of the graph: an edge where each is among the other's nearest so many
    min_common: int = Field(10, gt=0)  # questions that two people must both have answered to be compared
    clusters: int | None = Field(None, ge=2)  # None: the number with the best silhouette
    max_clusters: int = Field(8, ge=2)


class Predict(Section):
    """Choices at questions that a predictor has not seen answered by this person."""

    methods: list[Method] = Field(default=["anonymous", "roleplay", "fewshot"])  # of the endpoint
    demonstrations: list[Annotated[int, Field(gt=0, le=16)]] = Field(
        default=[4]
    )  # answers of the person that are known, for fewshot
    choose: list[Literal["information", "random"]] = Field(default=["information"])  # how those are chosen
    split: str | None = "test"  # questions that are predicted; null: all
    known: str | None = "train"  # questions that demonstrations are taken from; null: all but the one that is predicted
    users: int | None = Field(None, gt=0)  # people whose choices are predicted, drawn by the seed; None: all
    questions: int | None = Field(None, gt=0)  # per person; None: all that the person chose at
    bootstrap: int = Field(1000, gt=0)  # draws of people and of questions, for intervals


class Survey(Section):
    """Everybody is role-played at the same questions, and the choices are analysed as if people had made them."""

    questions: int = Field(0, ge=0)  # drawn by the seed; 0: no survey
    users: int | None = Field(None, gt=0)


class Endpoint(Section):
    """Any server that speaks OpenAI's chat completions."""

    url: str  # up to and with /v1
    model: str
    key_env: str | None = None  # the environment variable that holds the key; None: the server wants none
    read: Literal["logprobs", "text"] = "logprobs"  # of the first token; text: what was said, for servers without them
    top_logprobs: int = Field(20, gt=0)
    max_tokens: int | None = Field(None, gt=0)  # None: 1 for logprobs, 8 for text
    system_role: bool = True  # False: for chat templates without one, it opens the first turn of the user
    concurrency: int = Field(8, gt=0)
    timeout_s: float = Field(120.0, gt=0)
    retries: int = Field(4, ge=0)  # of a request that meets a busy or a restarting server
    body: dict[str, Any] = Field(default={})  # laid into every request as it is, such as {steering: {preset: concise}}


class UsersRecipe(Section):
    """Of jobs/users.py."""

    name: str = Field(pattern=r"^[a-zA-Z0-9][a-zA-Z0-9._-]*$")
    job: Literal["users"] = "users"
    seed: int = 0
    people: Source
    analysis: Analysis = Analysis()
    predict: Predict = Predict()
    survey: Survey = Survey()
    endpoint: Endpoint | None = None
    rewards: str | None = (
        None  # a folder by jobs/reward.py, of a preference model or a comparer; conditional ones are told who
    )
    rewards_head: str | None = None  # of a preference model with several: by which of them people choose
    trust_remote_code: bool = False  # of the reward model's backbone

    @model_validator(mode="after")
    def _consistent(self) -> UsersRecipe:
        people = self.people
        if isinstance(people, Simulated) and people.law == "clusters" and len(people.ratings or range(4)) != 4:
            raise ValueError(
                f"people.law clusters is of four ratings, people.ratings names {len(people.ratings or ())}: name four, or give "
                "law: random"
            )
        if self.survey.questions and self.endpoint is None:
            raise ValueError("survey.questions asks a model: give endpoint.url and endpoint.model, or questions: 0")
        for key in ("methods", "demonstrations", "choose"):
            values = getattr(self.predict, key)
            if len(set(values)) != len(values):
                raise ValueError(f"predict.{key} says something twice: {values}")
        return self


def load_users(path: str | Path, overrides: list[str] | tuple[str, ...] = ()) -> UsersRecipe:
    """Read a recipe and lay `key.sub=value` overrides over it, as `config.load` does. Raises ConfigError."""
    raw = read(path, overrides, example="predict.users=20")
    if raw.get("job") != "users":
        said = f"job: {raw['job']}" if "job" in raw else "no job"
        raise ConfigError(f"{path} is no recipe of jobs/users.py: it says {said}, expected job: users")
    return build(UsersRecipe, raw, str(path))
