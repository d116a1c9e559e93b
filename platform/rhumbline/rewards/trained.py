"""Trained reward networks on disk: what their outputs mean on 0-100, and the source that scores with them. Over `network`.

    network = Network.load("rewards/mine")                           # what a training has saved
    maps = preference_maps(network.raw(calibration_rows))            # statistics frozen on the calibration split
    schema = Schema(kind="preference", heads=heads, base="embedded", fingerprint=network.fingerprint, maps=maps)
    publish("rewards/mine", schema, lambda pairs: schema.scores(network.raw(rows(pairs))))

    rewards = TrainedRewards("rewards/mine")                         # sources: [{kind: network, path: rewards/mine}]
    rewards.setup()                                                  # loads, checks that scores hold still
    rewards.score(pairs)                                             # (N, H) on 0-100

A logit has no unit: as a score it is 50 + 10 z, with mean and deviation frozen on the calibration split, so that weights of an
objective mean the same whatever model it comes from. The logit is the default and the probability an option, because
probabilities crowd near 0 and 1 and, learned from, shorten answers. N answers, H heads.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit

from rhumbline import durable
from rhumbline.errors import ConfigError, DataError, ScoringError, did_you_mean
from rhumbline.records import Message, Prompt
from rhumbline.rewards.features import Pair, Side
from rhumbline.rewards.invariance import PROBES, TOLERANCE, check_invariance
from rhumbline.rewards.network import Network
from rhumbline.rewards.objectives import Calibration, Head
from rhumbline.rewards.reading import Profile, profile_text

Array = NDArray[np.float64]
Kind = Literal["regression", "preference", "absolute", "comparer"]
SCHEMA = "schema.json"
FORMAT = 1
# Of a network's folder: all that its scores depend on.
FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "*.py",  # code that the model brings along
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "*.model",  # of SentencePiece
    "special_tokens_map.json",
    "added_tokens.json",
    "*.jinja",
    "chat_template.json",
)
PROBE_TOLERANCE = 0.5  # points of 100: arithmetic of another machine, not another model
# In 8 bits a score depends a little on its batch: which columns are kept in 16 bits is decided over all of it.
TOLERANCE_8BIT, PROBE_TOLERANCE_8BIT = 0.02, 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputMap:
    """A head's outputs to 0-100: offset + scale * link(output - centre)."""

    link: Literal["identity", "sigmoid"] = "identity"
    centre: float = 0.0
    scale: float = 1.0
    offset: float = 0.0

    def __call__(self, outputs_N: ArrayLike) -> Array:
        linked: Array = np.asarray(outputs_N, dtype=np.float64) - self.centre
        if self.link == "sigmoid":
            linked = expit(linked)
        return linked * self.scale + self.offset


Maps = Mapping[str, tuple[OutputMap, ...]]  # name -> (H,); the first one is used unless a recipe names another


def regression_maps(mean_H: Sequence[float], std_H: Sequence[float]) -> Maps:
    """Outputs that learned (label - mean) / std, labels on 0-100."""
    return {"score": tuple(OutputMap(scale=s, offset=m) for m, s in zip(mean_H, std_H, strict=True))}


def preference_maps(outputs_NH: ArrayLike) -> Maps:
    """Bradley-Terry scores, whose zero is arbitrary. Probability: of winning against an answer of the calibration mean."""
    means_H, logits = _logits(outputs_NH)
    return {"logit": logits, "probability": tuple(OutputMap(link="sigmoid", centre=m, scale=100) for m in means_H)}


def absolute_maps(outputs_NH: ArrayLike, link: Literal["identity", "sigmoid"] = "sigmoid") -> Maps:
    """Scores in 0..1 behind `link`: identity for a network that learned them as they are."""
    _, logits = _logits(outputs_NH)
    return {"logit": logits, "probability": tuple(OutputMap(link=link, scale=100) for _ in logits)}


def comparer_maps() -> Maps:
    """Of a comparer's chance of winning, ties counting half."""
    return {"probability": (OutputMap(scale=100),)}


def _logits(outputs_NH: ArrayLike) -> tuple[list[float], tuple[OutputMap, ...]]:
    """(H,) calibration means, and 50 + 10 z. Raises DataError where an output never varies."""
    outputs = np.asarray(outputs_NH, dtype=np.float64)
    if len(outputs) < 2 or not np.isfinite(outputs).all():
        raise DataError(f"calibration needs at least two answers with finite outputs, got {len(outputs)} rows")
    mean_H, std_H = outputs.mean(axis=0), outputs.std(axis=0)
    if np.ptp(outputs, axis=0).min() == 0:
        raise DataError(
            f"output {int(np.ptp(outputs, axis=0).argmin())} is the same for all {len(outputs)} calibration answers: the "
            "network has learned nothing, or they are one answer"
        )
    return mean_H.tolist(), tuple(
        OutputMap(centre=m, scale=10 / s, offset=50) for m, s in zip(mean_H, std_H, strict=True)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Schema:
    """What the outputs of a network's folder mean. What it reads is in its config.json, see network.SPEC."""

    kind: Kind
    heads: tuple[Head, ...]  # (H,) in the order of the outputs; a comparer's one: its chance of winning
    base: str  # the backbone that training began with, as `learning.policy.resolve` takes it
    fingerprint: Mapping[str, Any]  # of the configuration
    maps: Maps
    conditional: bool = False  # trained with who judges in the prompt
    calibration: Calibration | None = None  # of the scores, heads as objectives
    probes: tuple[Mapping[str, Any], ...] = ()  # prompt, response, scores (H,) by the first map
    files: Mapping[str, str] = dataclasses.field(default_factory=dict)  # name -> SHA-256

    def scores(self, outputs_NH: ArrayLike, output: str | None = None) -> Array:
        """(N, H) on 0-100 by the map `output`; None: the first. Raises ConfigError for one that the kind does not have."""
        outputs, maps = np.asarray(outputs_NH, dtype=np.float64), self.chosen(output)
        return np.stack([one(outputs[:, h]) for h, one in enumerate(maps)], axis=1)

    def chosen(self, output: str | None) -> tuple[OutputMap, ...]:
        """(H,) the maps called `output`. Raises ConfigError."""
        name = output if output is not None else next(iter(self.maps))
        if name not in self.maps:
            raise ConfigError(
                f"a {self.kind} model gives no {name!r}.{did_you_mean(name, self.maps)} It gives: {', '.join(self.maps)} "
                "(rewards.sources[].output)"
            )
        return self.maps[name]

    @property
    def id(self) -> str:
        """A hash: equal ids give equal scores."""
        return hashlib.sha256(durable.to_json(self.to_dict()).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "kind": self.kind,
            "heads": [head.to_dict() for head in self.heads],
            "base": self.base,
            "fingerprint": dict(self.fingerprint),
            "maps": {name: [asdict(one) for one in maps] for name, maps in self.maps.items()},
            "conditional": self.conditional,
            "calibration": None if self.calibration is None else self.calibration.to_dict(),
            "probes": [dict(one) for one in self.probes],
            "files": dict(self.files),
        }

    @classmethod
    def load(cls, folder: str | Path) -> Schema:
        """What `publish` wrote; light. Raises ConfigError for a folder without a network, and a schema of another format."""
        path = Path(folder).expanduser() / SCHEMA
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise ConfigError(
                f"{path.parent} holds no reward network: {SCHEMA} is missing. jobs/reward.py makes one"
            ) from None
        except (OSError, ValueError) as e:
            raise ConfigError(f"{path} cannot be read: {e}") from None
        if not isinstance(data, dict):
            raise ConfigError(f"{path} cannot be read: expected an object, found {type(data).__name__}")
        if "ridge" in data:
            raise ConfigError(f"{path.parent} holds regression heads without a network: its source is kind: regression")
        wanted = {field.name for field in fields(cls)} | {"format"}
        if data.get("format") != FORMAT or set(data) != wanted:
            raise ConfigError(
                f"{path}: format {data.get('format')} with keys {sorted(data)}, expected format {FORMAT} with "
                f"{sorted(wanted)}: train anew with jobs/reward.py"
            )
        try:
            schema = cls(
                kind=data["kind"],
                heads=tuple(Head(**head) for head in data["heads"]),
                base=data["base"],
                fingerprint=data["fingerprint"],
                maps={name: tuple(OutputMap(**one) for one in maps) for name, maps in data["maps"].items()},
                conditional=bool(data["conditional"]),
                calibration=None if data["calibration"] is None else Calibration.from_dict(data["calibration"]),
                probes=tuple(data["probes"]),
                files=data["files"],
            )
        except (TypeError, KeyError, ValueError, AttributeError) as e:
            raise ConfigError(f"{path} cannot be read: {e}") from None
        counts = {len(maps) for maps in schema.maps.values()}
        if schema.kind not in get_args(Kind) or counts != {len(schema.heads)}:
            raise ConfigError(
                f"{path}: a {schema.kind!r} model with {len(schema.heads)} heads and maps of {sorted(counts)} outputs, "
                f"expected a map per head and a kind of {', '.join(get_args(Kind))}"
            )
        return schema


def known_profile(schema: Schema, profile: Profile, folder: Path) -> str | None:
    """A profile as text. Raises ConfigError for one that is given to a network that has never seen any."""
    text = profile_text(profile)
    if text is not None and not schema.conditional:
        raise ConfigError(
            f"{folder} was trained without knowing who judges: the profile {text!r} would be words that it never saw, leave it "
            "out (rewards.sources[].profile, --profile)"
        )
    return text


def publish(folder: str | Path, schema: Schema, score: Callable[[Sequence[Pair]], Array]) -> Schema:
    """Write schema.json beside a saved network, last of all, with hashes of its files and what `score` (the network as it
    was saved, by the first map) gives to known answers; returns it as written.
    """
    target, pairs = Path(folder), PROBES
    probes = tuple(
        {"prompt": prompt.messages[-1].content, "response": response, "scores": [float(s) for s in scores_H]}
        for (prompt, response), scores_H in zip(pairs, score(pairs), strict=True)
    )
    written = dataclasses.replace(schema, probes=probes, files=file_hashes(target))
    durable.replace(target / SCHEMA, (durable.to_json(written.to_dict(), indent=1) + "\n").encode())
    return written


def file_hashes(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of what a network's scores depend on."""
    hashes = {}
    for path in sorted({path for pattern in FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            hashes[path.name] = hashlib.file_digest(file, "sha256").hexdigest()
    return hashes


def open_network(
    folder: Path, schema: Schema, *, load_in_8bit: bool = False, trust_remote_code: bool = False
) -> Network:
    """The network of a folder, its files compared with the schema's. Raises ConfigError where they differ."""
    found = file_hashes(folder)
    if found != dict(schema.files):
        differ = sorted(name for name in {**found, **schema.files} if found.get(name) != schema.files.get(name))
        raise ConfigError(
            f"{folder}: {', '.join(differ)} is not what {SCHEMA} was written for: the files do not belong together, copy "
            "the folder again or train anew"
        )
    return Network.load(folder, load_in_8bit=load_in_8bit, trust_remote_code=trust_remote_code)


def check_network(schema: Schema, network: Network, score: Callable[[Sequence[Pair]], Array], in_8bit: bool) -> None:
    """Raises ConfigError for a network of another architecture, and for one that gives known answers other scores."""
    if network.fingerprint != dict(schema.fingerprint):
        raise ConfigError(
            f"the schema is of another network: {dict(schema.fingerprint)}, this is {network.fingerprint}"
        )
    heads = tuple(head.name for head in schema.heads)
    if schema.kind != "comparer" and heads != network.spec.outputs:
        raise ConfigError(
            f"the schema is of another network: its heads are {', '.join(heads)}, this one gives "
            f"{', '.join(network.spec.outputs)}, in this order"
        )
    pairs = [
        (Prompt(id=str(i), messages=(Message(role="user", content=probe["prompt"]),)), str(probe["response"]))
        for i, probe in enumerate(schema.probes)
    ]
    if not pairs:
        return
    allowed = PROBE_TOLERANCE_8BIT if in_8bit else PROBE_TOLERANCE
    moved = float(np.abs(score(pairs) - np.array([probe["scores"] for probe in schema.probes])).max())
    if not moved <= allowed:
        raise ConfigError(
            f"known answers score up to {moved:.2g} points off what the network gave them when it was made, allowed is "
            f"{allowed}: these are other weights, or another version of transformers reads them differently"
        )


class TrainedRewards:
    """A reward source: a regression, preference or absolute network."""

    def __init__(
        self,
        folder: str | Path,
        *,
        output: str | None = None,
        profile: Profile = None,
        token_budget: int = 4096,
        load_in_8bit: bool = False,
        trust_remote_code: bool = False,
    ) -> None:
        """`output`: which of the schema's maps; `profile`: who judges, of a network that was trained on profiles. Nothing
        heavy happens before `setup`. Raises ConfigError for a folder or an output that is not there, and for a profile that
        the network cannot know what to do with.
        """
        self.folder = Path(folder).expanduser()
        self.schema = Schema.load(self.folder)
        if self.schema.kind == "comparer":
            raise ConfigError(f"{self.folder} holds a comparer: its source is kind: comparer")
        self.schema.chosen(output)
        self.output, self.profile = output, known_profile(self.schema, profile, self.folder)
        self.token_budget = token_budget
        self.load_in_8bit, self.trust_remote_code = load_in_8bit, trust_remote_code
        self.network: Network | None = None

    @property
    def heads(self) -> tuple[Head, ...]:
        return self.schema.heads

    @property
    def id(self) -> str:
        said = {"schema": self.schema.id, "output": self.output, "profile": self.profile, "8bit": self.load_in_8bit}
        return hashlib.sha256(durable.to_json(said).encode("utf-8", "surrogatepass")).hexdigest()[:16]

    def setup(self, network: Network | None = None) -> None:
        """Load the network and check it. Raises ConfigError for files or scores that are not the schema's, ScoringError
        where scores move with batch size or padding side.
        """
        if network is None:
            network = open_network(
                self.folder, self.schema, load_in_8bit=self.load_in_8bit, trust_remote_code=self.trust_remote_code
            )
        self.network = network
        check_invariance(self._score, tolerance=TOLERANCE_8BIT if self.load_in_8bit else TOLERANCE)
        check_network(self.schema, network, self._known, self.load_in_8bit)

    def score(self, pairs: Sequence[Pair]) -> Array:
        """(N, H) on 0-100, in the order of `pairs`."""
        return self._score(pairs, self.token_budget, "right")

    def _score(self, pairs: Sequence[Pair], token_budget: int, side: Side) -> Array:
        return self.schema.scores(self._outputs(pairs, self.profile, token_budget, side), self.output)

    def _known(self, pairs: Sequence[Pair]) -> Array:
        """As `publish` was told: by the first map, without a profile."""
        return self.schema.scores(self._outputs(pairs, None, self.token_budget, "right"))

    def _outputs(self, pairs: Sequence[Pair], profile: Profile, token_budget: int, side: Side) -> Array:
        if self.network is None:
            raise ScoringError("the reward network is not loaded: call setup() first")
        rows = [self.network.reader.pair(prompt, response, profile) for prompt, response in pairs]
        return self.network.raw(rows, token_budget, side)
