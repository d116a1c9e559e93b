"""What a server allows: every limit in one place, so that a person can read what is refused and change it.

Settings()                                         # the defaults, for one machine
Settings(deadline_s=30, requests_per_minute=60)    # deployments read it from YAML, unknown keys are refused

Limits per key are counted by each replica of the HTTP app: with R replicas a key may have R times as much.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class Settings(BaseModel):
    """Limits of the HTTP app. Sizes are of one request, rates and concurrency of one key."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    # --- what a request may hold: 413 for bytes, 400 for the rest ---
    max_body_bytes: int = Field(1024 * 1024, ge=1024)
    max_json_depth: int = Field(24, ge=4)  # nested objects and lists
    max_json_values: int = Field(20_000, ge=100)  # numbers, texts, lists and objects together
    max_messages: int = Field(256, ge=1)
    max_text_chars: int = Field(400_000, ge=1)  # of all messages or prompts together
    max_tokens: int = Field(4096, ge=1)  # of one answer, also where a request names none
    max_n: int = Field(8, ge=1)
    max_best_of: int = Field(16, ge=1)
    max_answers: int = Field(32, ge=1)  # n x best_of x directions x prompts of one request
    max_prompts: int = Field(8, ge=1)  # of /v1/completions
    max_items: int = Field(64, ge=1)  # of /v1/rewards

    # --- how long and how often ---
    read_timeout_s: float = Field(30.0, gt=0)  # for the body to arrive: 408
    deadline_s: float = Field(300.0, gt=0)  # for the whole answer: 504
    requests_per_minute: float = Field(
        600.0, gt=0
    )  # refill of a key's bucket; every answer asked for, or scored, takes one
    burst: int = Field(60, ge=1)  # size of the bucket
    max_concurrent: int = Field(32, ge=1)  # requests of a key in flight

    # --- who may look ---
    public_metrics: bool = False  # /metrics without a key
    log_text: bool = False  # requests and answers in the access log
    cors_origins: tuple[str, ...] = ()  # pages of other hosts that may call; none by default
