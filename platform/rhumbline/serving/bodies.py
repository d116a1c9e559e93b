"""What the routes read: OpenAI's requests with `steering` among their fields, every field named and bounded.

A field that is not here is refused, never dropped: a misspelt `temperature` would otherwise be obeyed by nobody, and told to
nobody. Three kinds of fields:

    ours            model, messages or prompt, steering, metadata, verbosity, stream, stream_options
    the engine's    temperature, top_p, ..., tools, response_format; of vLLM: top_k, min_p, repetition_penalty, min_tokens, ...
    for nobody      user, store, service_tier, ...: standard clients send them; they change nothing here, and go no farther

Not among them on purpose: chat_template, chat_template_kwargs, vllm_xargs, add_generation_prompt, continue_final_message and
whatever else would change the words that the server renders, and prompt_logprobs, echo and suffix, which would show them.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, StringConstraints

from rhumbline.serving.requests import SteeringBody, read_body


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _steering(raw: Any) -> SteeringBody | None:
    return None if raw is None else read_body(raw)


# Its own reader, because that one names the place below `steering` and its remedy.
Steering = Annotated[SteeringBody | None, PlainValidator(_steering, json_schema_input_type=SteeringBody | None)]
MetadataKey = Annotated[str, StringConstraints(max_length=64)]
MetadataValue = Annotated[str, StringConstraints(max_length=512)]
Stop = Annotated[str, StringConstraints(min_length=1, max_length=256)]
Json = dict[str, Any]


class TextPart(Strict):
    """One part of a message's content. Text only: the policies are text models."""

    type: Literal["text"]
    text: str


class ChatMessage(BaseModel):
    """One turn. Fields that clients feed back from an answer are read over; they are in nobody's prompt."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Annotated[list[TextPart], Field(min_length=1, max_length=256)] | None = None
    name: Annotated[str, StringConstraints(max_length=64)] | None = None
    tool_calls: Annotated[list[Json], Field(max_length=64)] | None = None
    tool_call_id: Annotated[str, StringConstraints(max_length=256)] | None = None
    refusal: Any = None
    annotations: Any = None
    audio: Any = None
    function_call: Any = None
    reasoning: Any = None
    reasoning_content: Any = None

    def turn(self) -> Json:
        """The message as `prompt.final_messages` reads it, without what is not set."""
        return self.model_dump(include={"role", "content", "name", "tool_calls", "tool_call_id"}, exclude_none=True)


class StreamOptions(Strict):
    include_usage: bool = False


class Sampling(Strict):
    """What both kinds of completion have in common."""

    model: Annotated[str, StringConstraints(min_length=1, max_length=512)] = Field(
        description="The served model, `name@preset` or `name@helpfulness=0.8,verbosity=-0.6`."
    )
    steering: Steering = None
    metadata: Annotated[dict[MetadataKey, MetadataValue], Field(max_length=16)] | None = Field(
        None, description="`metadata.steering` says a direction as text, where proxies strip unknown fields."
    )
    verbosity: Literal["low", "medium", "high"] | None = Field(
        None, description="OpenAI's own dial; needs a verbosity objective."
    )
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    max_tokens: Annotated[int, Field(ge=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    logit_bias: (
        Annotated[dict[Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")], float], Field(max_length=300)] | None
    ) = None
    # of vLLM
    top_k: Annotated[int, Field(ge=-1, le=1_000_000)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    min_tokens: Annotated[int, Field(ge=0)] | None = None
    stop_token_ids: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=64)] | None = None
    ignore_eos: bool | None = None
    # for nobody
    user: Annotated[str, StringConstraints(max_length=512)] | None = None
    store: bool | None = None
    service_tier: Annotated[str, StringConstraints(max_length=64)] | None = None
    safety_identifier: Annotated[str, StringConstraints(max_length=512)] | None = None
    prompt_cache_key: Annotated[str, StringConstraints(max_length=512)] | None = None


class ChatBody(Sampling):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    response_format: Json | None = None
    tools: Annotated[list[Json], Field(max_length=128)] | None = None
    tool_choice: Annotated[str, StringConstraints(max_length=64)] | Json | None = None
    parallel_tool_calls: bool | None = None


class CompletionBody(Sampling):
    """POST /v1/completions. The prompt becomes the user's turn: the policy knows directions in a chat alone."""

    prompt: str | Annotated[list[str], Field(min_length=1)]
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None


_OURS = {"model", "messages", "prompt", "steering", "metadata", "verbosity", "stream", "stream_options"}
_NOBODYS = {"user", "store", "service_tier", "safety_identifier", "prompt_cache_key"}


def for_engine(body: Sampling) -> Json:
    """The fields that the engine gets as they are: those that the client set, and no null."""
    return body.model_dump(exclude=_OURS | _NOBODYS, exclude_unset=True, exclude_none=True)


# --- the other routes -------------------------------------------------------------------------------------------------


class PlainMessage(Strict):
    """A turn of a conversation that is scored."""

    role: Literal["system", "user", "assistant"]
    content: str


Conversation = Annotated[list[PlainMessage], Field(min_length=1)]


class ScoreBody(Strict):
    """POST /v1/steering/score."""

    steering: Steering = None
    messages: Conversation
    response: str


class RewardItem(Strict):
    messages: Conversation
    response: str


class RewardsBody(Strict):
    """POST /v1/rewards."""

    items: Annotated[list[RewardItem], Field(min_length=1)]


def _directions(raw: Any) -> list[SteeringBody]:
    if not isinstance(raw, list) or not 2 <= len(raw) <= 5:
        raise ValueError("expected a list of 2 to 5 directions, each as the field steering of a chat")
    return [read_body(one, f"directions.{i}") for i, one in enumerate(raw)]


class CompareBody(Strict):
    """POST /v1/steering/compare: one conversation, 2 to 5 directions, one seed."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    directions: Annotated[
        list[SteeringBody],
        PlainValidator(
            _directions, json_schema_input_type=Annotated[list[SteeringBody], Field(min_length=2, max_length=5)]
        ),
    ]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None


Name = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class QuizBody(Strict):
    """POST /v1/steering/quiz."""

    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    repeat_after: Annotated[int, Field(ge=1, le=60)] | None = Field(
        None,
        description="After so many answers the first question comes again, sides swapped: is the person consistent?",
    )


class AnswerBody(Strict):
    """POST /v1/steering/quiz/{id}/answer."""

    question: Annotated[int, Field(ge=0, lt=2**31)]
    choice: Literal["a", "b", "tie"]


class SaveBody(Strict):
    """POST /v1/steering/quiz/{id}/save. `bind`: the key's requests without a direction follow the profile from now on."""

    profile: Name
    bind: bool = False


class ProfileBody(Strict):
    """PUT /v1/steering/profiles/{name}."""

    weights: Annotated[dict[str, float], Field(min_length=1, max_length=64)]
    bind: bool | None = Field(
        None, description="True: the key's default from now on; false: no longer; absent: as it is."
    )
