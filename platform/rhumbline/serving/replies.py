"""What the routes answer, for the OpenAPI page. The routes return plain JSON: OpenAI's objects are the engine's, and pass
through with whatever a newer engine adds.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class Open(BaseModel):
    """Further keys are legal: OpenAI's clients keep them."""

    model_config = ConfigDict(extra="allow")


Weights = dict[str, float]  # objective -> weight or reward


class SteeringEcho(Open):
    """What was asked and what was done."""

    requested: Weights
    effective: Weights = Field(
        description="The direction that the policy was told: inside the trained cone, on its grid."
    )
    projected: bool = Field(description="The request lay outside the trained cone.")
    snapped: bool
    source: Literal["body", "header", "metadata", "verbosity", "alias", "profile", "default"]
    method: str
    template_version: str | None
    rewards: Weights | None = None


class Usage(Open):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    total_tokens: int | None = None


class Completion(Open):
    id: str
    model: str
    choices: list[dict[str, Any]]
    usage: Usage | None = None
    steering: SteeringEcho


class ChatReply(Completion):
    object: Literal["chat.completion"]


class CompletionReply(Completion):
    object: Literal["text_completion"]


class ModelCard(Open):
    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    metadata: dict[str, Any]


class Models(BaseModel):
    object: Literal["list"]
    data: list[ModelCard]


class ObjectiveCard(BaseModel):
    name: str
    sign: Literal[1, -1]
    range: tuple[float, float, float] | None = Field(description="10%, 50% and 90% of the model's usual scores.")
    unit: str


class Region(BaseModel):
    axis: Weights
    half_angle_deg: float


class FrontPoint(BaseModel):
    direction: Weights
    rewards: Weights


class EvaluatedPoint(FrontPoint):
    pareto: bool = Field(
        description="No other evaluated direction is at least as good everywhere and better somewhere."
    )


class Effect(BaseModel):
    proven: bool
    why: str


class Objectives(BaseModel):
    model: str
    objectives: list[ObjectiveCard]
    region: Region
    default: Weights
    mechanism: Literal["prompt", "weights"]
    method: str
    template_version: str | None
    rewards: bool = Field(description="Whether the server has the run's reward model.")
    quiz: bool = Field(description="Whether the server can ask the quiz.")
    front: list[FrontPoint] = Field(description="The nondominated ones of `evaluated`.")
    evaluated: list[EvaluatedPoint] = Field(description="Mean rewards on held-out prompts, per evaluated direction.")
    effect: Effect


class Preset(BaseModel):
    name: str
    weights: Weights
    effective: Weights


class Presets(BaseModel):
    presets: list[Preset]


class Score(BaseModel):
    rewards: Weights
    value: float = Field(description="v.r over standardised rewards, as in training.")
    steering: SteeringEcho


class Compared(Open):
    steering: SteeringEcho
    message: dict[str, Any]
    usage: Usage
    words: int


class Comparison(BaseModel):
    results: list[Compared]


class RewardTable(BaseModel):
    objectives: list[str]
    rewards: list[list[float]]


class QuestionCard(BaseModel):
    index: int
    prompt: str
    a: str
    b: str


class EstimateCard(BaseModel):
    direction: Weights
    half_angle_deg: float
    asked: int
    consistent: bool | None = Field(description="Whether a repeated question was answered alike; null: none was.")


class QuizState(Open):
    id: str
    question: QuestionCard | None
    estimate: EstimateCard
    done: bool
    wedge: tuple[float, float] | None = Field(
        description="Two objectives: low and high angle that the person may have."
    )


class ProfileCard(BaseModel):
    name: str
    weights: Weights
    source: Literal["quiz", "hand"]
    half_angle_deg: float | None
    updated: float
    bound: bool


class Profiles(BaseModel):
    profiles: list[ProfileCard]


class Status(BaseModel):
    status: str
    model: str


STREAMED: dict[str, Any] = {
    "description": "The answer; with `stream`, server-sent events that end in [DONE], the last chunk with `steering`.",
    "content": {"text/event-stream": {"schema": {"type": "string"}}},
    "headers": {
        "X-Steering-Effective": {
            "description": "The effective direction as text, in the form that X-Steering reads.",
            "schema": {"type": "string"},
        }
    },
}

STEERED: dict[str, Any] = {
    "parameters": [
        {
            "name": "X-Steering",
            "in": "header",
            "required": False,
            "description": "A direction as text: `concise`, `helpfulness=0.8,verbosity=-0.6` or `-37deg`.",
            "schema": {"type": "string", "maxLength": 512},
        }
    ]
}
