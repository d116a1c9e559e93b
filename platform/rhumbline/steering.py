"""steering.json: what a checkpoint's directions mean. Stored beside the weights; whoever loads them checks it.

steering = Steering(objectives=..., signs=..., calibration=..., codec=codec.to_dict(), region=cone.to_dict(),
                    reward_model=reward_model.id, iteration=2, initial="embedded")
steering.write("checkpoints/t=2")
read_trained_on("checkpoints/t=2")        # prompts that must not judge it
read("checkpoints/t=2").require(objectives=["helpfulness", "verbosity"], reward_model=reward_model.id)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from rhumbline import codecs
from rhumbline.codecs import Codec
from rhumbline.directions import Cone
from rhumbline.durable import replace
from rhumbline.errors import CodecError
from rhumbline.fingerprint import fingerprint

FILE = "steering.json"
TRAINED_ON = "trained_on.txt"  # one data.prompts.turn_id per line: prompts that must not judge this policy
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Steering:
    """The contract between a policy and whoever steers it."""

    objectives: tuple[str, ...]  # (K,) recipe order
    signs: tuple[int, ...]  # (K,) +1: more is better when no direction says otherwise
    calibration: Mapping[str, Any]  # rewards.objectives.Calibration, as data: the scales that directions refer to
    codec: Mapping[str, Any]  # Codec.to_dict
    region: Mapping[str, Any]  # Cone.to_dict: the trained directions
    reward_model: str  # id of the reward model that the policy was trained against
    iteration: int  # t
    initial: str  # the policy that training started from, as the recipe names it
    presets: Mapping[str, Mapping[str, float]]
    weights: str | None = field(default=None, compare=False)  # fingerprint of those beside it; None: unsaid
    format: int = FORMAT

    def write(self, folder: str | Path) -> Path:
        """Write `folder`/steering.json atomically, with the fingerprint of the weights that are there."""
        path = Path(folder) / FILE
        data = asdict(self) | {"weights": _fingerprint(Path(folder))}
        replace(path, (json.dumps(data, indent=2, sort_keys=True) + "\n").encode())
        return path

    def require_weights(self, folder: str | Path) -> None:
        """Raises CodecError where the weights in `folder` are not those that this was written beside."""
        found = _fingerprint(Path(folder))
        if self.weights is not None and found != self.weights:
            has = "no weights" if found is None else f"the weights {found[:12]}"
            raise CodecError(
                f"{folder} holds {has}, and its {FILE} was written for {self.weights[:12]} (fingerprints): the two are of "
                "different checkpoints, or the weights were changed since. Copy a checkpoint's folder as a whole"
            )

    def require_initial(self, folder: str | Path, initial: str) -> None:
        """Raises CodecError where the checkpoint in `folder` was trained from another policy than `initial`, a folder or a name.

        Two ways to write one folder are one. That a name leads to the same weights as then, an adapter's own base says.
        """
        there, here = (Path(name).expanduser() for name in (self.initial, initial))
        if self.initial != initial and not (there.is_dir() and here.is_dir() and there.samefile(here)):
            raise CodecError(
                f"{folder} was trained from {self.initial}, the recipe starts from {initial} (policy.initial): give the "
                "policy that it was trained from, or another checkpoint"
            )

    def make_codec(self) -> Codec:
        """The codec that the policy was trained with. Raises CodecError where this Rhumbline speaks another version."""
        return codecs.from_dict(self.codec)

    def cone(self) -> Cone:
        return Cone.from_dict(self.region)

    def require(
        self, *, objectives: Sequence[str], codec: Codec | None = None, reward_model: str | None = None
    ) -> None:
        """Raises CodecError where the checkpoint was trained for other objectives, words or rewards than wanted."""
        if tuple(objectives) != self.objectives:
            raise CodecError(
                f"the checkpoint was trained for the objectives {', '.join(self.objectives)}, the recipe names "
                f"{', '.join(objectives)} (rewards.objectives): use the same names in the same order, or another checkpoint"
            )
        if codec is not None and codec.to_dict() != dict(self.codec):
            raise CodecError(
                f"the checkpoint understands the codec {self.codec.get('version')} with options "
                f"{self.codec.get('options')}, the recipe asks for {codec.version} with {dict(codec.options)} "
                f"(directions.codec): set it to the checkpoint's"
            )
        if reward_model is not None and reward_model != self.reward_model:
            raise CodecError(
                f"the checkpoint's calibration belongs to the reward model {self.reward_model}, the recipe's is "
                f"{reward_model} (rewards): use the same sources and objectives, or train t=0 with initial.strategy relabel"
            )


def _fingerprint(folder: Path) -> str | None:
    return fingerprint(folder) if any(folder.glob("*.safetensors")) else None


def read(folder: str | Path) -> Steering:
    """The steering.json of a checkpoint. Raises CodecError where there is none or it is of another format."""
    path = Path(folder) / FILE
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        known = {f.name for f in fields(Steering)}
        if data.get("format") != FORMAT or set(data) | {"weights"} != known:
            raise CodecError(
                f"{path}: format {data.get('format')} with keys {sorted(data)}, this Rhumbline reads format {FORMAT}"
            )
        data["objectives"], data["signs"] = tuple(data["objectives"]), tuple(data["signs"])
        return Steering(**data)
    except FileNotFoundError:
        raise CodecError(f"{folder} holds no {FILE}: it is not a checkpoint that Rhumbline trained") from None
    except (ValueError, TypeError, KeyError) as e:
        raise CodecError(f"{path} cannot be read: {e}") from None


def write_trained_on(folder: str | Path, turn_ids: Iterable[str]) -> None:
    """Say beside the weights which prompts they were trained on, by `data.prompts.turn_id`."""
    replace(Path(folder) / TRAINED_ON, "".join(f"{turn}\n" for turn in sorted(set(turn_ids))).encode())


def read_trained_on(folder: str | Path) -> frozenset[str]:
    """The turn ids that a checkpoint was trained on; none where it does not say."""
    path = Path(folder) / TRAINED_ON
    return frozenset(path.read_text(encoding="utf-8").split()) if path.is_file() else frozenset()
