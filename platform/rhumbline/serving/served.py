"""What is served: a checkpoint with all that steering it needs, checked against itself, its weights and its run.

    served = open_served("runs/smol")                       # the newest finished checkpoint of a run
    served = open_served("runs/smol", checkpoint=1)
    served = open_served("runs/smol/checkpoints/t=2")       # or a folder with a steering.json, such as an adapter's
    served.cone, served.codec, served.default, served.ranges, served.effect.why

A model understands only the sentence that it saw, for the objectives that it was rewarded for. So a checkpoint whose
steering.json names other words, objectives, rewards or weights than it has is refused here, before a request is answered.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from rhumbline import codecs, config, durable, steering
from rhumbline.codecs import Codec
from rhumbline.config import SoupRecipe
from rhumbline.directions import Cone, Direction, angle_between_deg, parse, region
from rhumbline.errors import CodecError, DirectionError, RunError, did_you_mean
from rhumbline.learning.embedded import adapter as embedded_adapter
from rhumbline.rewards.objectives import Calibration
from rhumbline.scalarise import Standardiser
from rhumbline.serving.evidence import UNMEASURED, Achieved, Effect, Ranges, achieved, effect, ranges
from rhumbline.serving.mixtures import Mixture, NearestMixtures, read_mixtures
from rhumbline.serving.weights import check_weights
from rhumbline.steering import Steering
from rhumbline.store import RunStore

Mechanism = Literal["prompt", "weights"]
RECIPE = "recipe.resolved.yaml"
VERBOSITY_DEG = 20.0
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")  # no @ and no colon: both mean something in a model's name


@dataclass(frozen=True, kw_only=True)
class Served:
    """One model behind the API. Plain data that pickles; what it is made of is built once, when first asked for."""

    name: str  # of the model in the API
    folder: Path  # of the weights: full ones, or an adapter of `steering.initial`; of soups the run's checkpoints
    steering: Steering
    mechanism: Mechanism = "prompt"
    presets: Mapping[str, Mapping[str, float]]  # name -> weights, the recipe's
    default: Direction  # (K,) what a request without a wish gets; inside the cone
    ranges: Ranges | None = None  # objective -> 10%, 50% and 90% of its scores, 0-100
    front: tuple[Achieved, ...] = ()  # strictly nondominated evaluated directions with their mean rewards
    achieved: tuple[Achieved, ...] = ()  # all evaluated directions
    effect: Effect = UNMEASURED
    method: str = "dpa"
    template_version: str | None  # of the codec's words; None where no prompt says a direction
    reward_model: str  # id of the reward model that `steering` and all figures refer to
    standardise: bool = True  # whether v . r is taken over standardised rewards, as in training
    verbosity_deg: float = VERBOSITY_DEG  # what verbosity=low or high turns a direction by
    mixtures: tuple[Mixture, ...] = ()  # mechanism weights: what the engine must hold
    run: Path | None = None  # where the recipe and the rewards are
    scored: tuple[str, ...] = ()  # stages of the run whose samples these weights gave, and were scored
    trust_remote_code: bool = False

    @classmethod
    def of(cls, contract: Steering, *, name: str, folder: Path, **rest: Any) -> Self:
        """From a steering.json alone; `rest` are further fields. Raises CodecError where it contradicts itself."""
        if not _NAME.fullmatch(name):
            raise CodecError(
                f"the model cannot be called {name!r}: give a name of letters, digits, '.', '_', '-' and '/', at most 128"
            )
        codec, cone = _consistent(contract)
        steerlm = codec.name == "steerlm"
        wanted = contract.presets.get("default")
        defaults: dict[str, Any] = {
            "presets": {preset: dict(weights) for preset, weights in contract.presets.items()},
            "default": cone.axis if wanted is None else cone.project(parse(wanted, cone.names))[0],
            "method": "steerlm" if steerlm else "dpa",
            "template_version": codec.version,
            "reward_model": contract.reward_model,
        }
        return cls(name=name, folder=folder, steering=contract, **defaults | rest)

    @property
    def names(self) -> tuple[str, ...]:
        """(K,) objectives, in the order of every vector here."""
        return self.steering.objectives

    @cached_property
    def cone(self) -> Cone:
        """The trained region."""
        return self.steering.cone()

    @cached_property
    def codec(self) -> Codec:
        """The words of a direction. Where steering is by weights no prompt has them; they are still defused in client text."""
        return self.steering.make_codec()

    @cached_property
    def standardiser(self) -> Standardiser:
        """What puts rewards on the scale on which v . r was maximised in training."""
        if not self.standardise:
            return Standardiser.identity(len(self.names))
        return Calibration.from_dict(self.steering.calibration).standardiser()

    @cached_property
    def nearest(self) -> NearestMixtures:
        """Mechanism weights: the lookup over `mixtures`."""
        return NearestMixtures(self.mixtures)

    @cached_property
    def tokenizer(self) -> Any:
        """Of the served weights, prepared for chats. Raises ConfigError where it cannot be loaded."""
        from rhumbline.learning.policy import EMBEDDED, load_tokenizer

        folder = self.mixtures[0].folder if self.mixtures else self.folder
        own = (folder / "tokenizer_config.json").is_file()
        return load_tokenizer(folder if own else self.steering.initial or EMBEDDED, self.trust_remote_code)

    @property
    def is_adapter(self) -> bool:
        """Whether `folder` holds an adapter alone, to be loaded onto `steering.initial`."""
        return (self.folder / "adapter_config.json").is_file() and not (self.folder / "config.json").is_file()


def open_served(
    run_or_checkpoint: str | Path, *, name: str | None = None, checkpoint: int | None = None, check_base: bool = True
) -> Served:
    """A run's newest finished checkpoint, its checkpoint t, the mixtures of a run of soups, or a folder with a steering.json.

    'embedded' is the shipped adapter. name: of the model in the API; None: the run's, or the folder's. check_base: look whether
    the weights stem from the policy that steering.json names, where that one is on this machine (seconds).

    Raises RunError where there is nothing to serve, CodecError where steering.json does not match.
    """
    if str(run_or_checkpoint) == "embedded":
        return _from_folder(embedded_adapter(), None, name or "rhumbline-smol", check_base)
    path = Path(run_or_checkpoint).expanduser()
    if (path / RECIPE).is_file():
        recipe = recipe_of(path)
        if isinstance(recipe, SoupRecipe):
            if checkpoint is not None:
                raise RunError(
                    f"{path} is a run of soups, which serves all of its mixtures: leave checkpoint {checkpoint} out"
                )
            return _from_soups(path, recipe, name or recipe.name)
        return _from_folder(_checkpoint(path, recipe, checkpoint), path, name or recipe.name, check_base)
    if checkpoint is not None:
        raise RunError(f"{path} is no run ({RECIPE} is missing): a checkpoint's number can only be chosen in one")
    if not (path / steering.FILE).is_file():
        near = did_you_mean(path.name, [p.parent.name for p in path.parent.glob(f"*/{RECIPE}")])
        raise RunError(f"{path} is neither a run ({RECIPE}) nor a checkpoint ({steering.FILE}).{near}")
    run = next((p for p in path.resolve().parents[:3] if (p / RECIPE).is_file()), None)
    return _from_folder(path, run, name or (path.name if run is None else run.name), check_base)


def recipe_of(run: Path) -> config.Run:
    """The resolved recipe of a run, of whichever job. Raises RunError."""
    file = run / RECIPE
    try:
        raw = yaml.safe_load(file.read_text(encoding="utf-8"))
        return config.validate(raw, str(file), kind=config.JOBS[str(raw.get("job", "dpa"))])
    except (OSError, yaml.YAMLError, KeyError, AttributeError) as e:
        raise RunError(f"{file} cannot be read as a recipe of {', '.join(config.JOBS)}: {e}") from None


# --- where it comes from ----------------------------------------------------------------------------------------------


def _from_folder(folder: Path, run: Path | None, name: str, check_base: bool) -> Served:
    folder = folder if has_weights(folder) or not has_weights(folder / "adapter") else folder / "adapter"
    contract = steering.read(folder)
    if not has_weights(folder):
        raise CodecError(
            f"{folder} holds a {steering.FILE} and no weights: expected config.json or adapter_config.json with *.safetensors"
        )
    contract.require_weights(folder)
    served = Served.of(contract, name=name, folder=folder.resolve())
    beside = folder / "adapter"
    if (beside / steering.FILE).is_file() and steering.read(beside) != contract:
        raise CodecError(f"{folder} and its adapter have different {steering.FILE}: one of them is another run's")
    recipe = None if run is None else recipe_of(run)
    trusted = False if recipe is None else recipe.policy.trust_remote_code
    if check_base:
        check_weights(folder, contract.initial, trusted)
    if run is None or recipe is None:
        return replace(served, ranges=ranges(None, (), contract))
    _matches_run(contract, folder, run, recipe)
    place = folder.parent if folder.name == "adapter" else folder
    label = place.name if place.name.startswith("t=") else f"t={contract.iteration}"
    job = next(job for job, kind in config.JOBS.items() if isinstance(recipe, kind))
    served = replace(served, method=served.method if served.method == "steerlm" else job)
    # iterations/t=N holds answers of the policy before, which became this one by learning from them.
    return _measured(served, run, recipe, label, [f"evaluation/{label}/scores"])


def _from_soups(run: Path, recipe: SoupRecipe, name: str) -> Served:
    names = tuple(recipe.rewards.objectives)
    signs = tuple(o.sign for o in recipe.rewards.objectives.values())
    calibration, inputs = _json(run / "rewards/calibration.json"), _json(run / "inputs.json")
    if not calibration or "reward model" not in inputs:
        raise CodecError(
            f"{run} lacks rewards/calibration.json or inputs.json: a run of soups is served once it is finished"
        )
    contract = Steering(  # a soup has no steering.json, since no prompt says its direction
        objectives=names,
        signs=signs,
        calibration=calibration,
        codec=codecs.make(recipe.directions.codec, names, recipe.directions.codec_options).to_dict(),
        region=region(recipe.directions, names).to_dict(),
        reward_model=str(inputs["reward model"]),
        iteration=0,
        initial=recipe.policy.initial,
        presets=recipe.directions.presets,
    )
    mixtures = read_mixtures(run, names, signs, name)
    served = Served.of(
        contract,
        name=name,
        folder=(run / "checkpoints").resolve(),
        mechanism="weights",
        method="soups",
        template_version=None,
        mixtures=mixtures,
    )
    return _measured(
        served, run, recipe, "soup", [f"evaluation/mixtures/{m.folder.name}/scores" for m in mixtures], every=True
    )


def _measured(
    served: Served, run: Path, recipe: config.Run, label: str, stages: Sequence[str], every: bool = False
) -> Served:
    """With what the run has measured. `stages`: of scores, the first that has any; `every`: all of them together."""
    store = RunStore.open(run)
    found = [stage for stage in stages if store.shards(stage)]
    found = found if every else found[:1]
    evaluation = _json(run / "evaluation" / f"{label}.json")
    points = achieved(evaluation, served.names)
    return replace(
        served,
        ranges=ranges(store, found, served.steering),
        scored=tuple(stage.removesuffix("/scores") for stage in found),
        achieved=points,
        front=tuple(point for point in points if point.pareto),
        effect=effect(evaluation),
        standardise=recipe.rewards.standardise,
        trust_remote_code=recipe.policy.trust_remote_code,
        run=run.resolve(),
    )


def _checkpoint(run: Path, recipe: config.Run, wanted: int | None) -> Path:
    """The folder of checkpoint `wanted`, or of the newest that is finished and still there."""
    if not recipe.steered:
        raise CodecError(
            f"{run} says no direction to its policy (directions.said: false): there is nothing to steer. Serve a run that does, "
            "or a run of jobs/soups.py"
        )
    store = RunStore.open(run)
    finished = [int(mark.split("/")[1].removeprefix("t=")) for mark in store.marks("iterations", "learn")]
    there = [t for t in finished if (run / "checkpoints" / f"t={t}" / steering.FILE).is_file()]
    if not there:
        raise RunError(f"{run} has no finished checkpoint yet: `rhumbline runs show` says how far it is")
    if wanted is not None and wanted not in there:
        raise RunError(f"{run} has no finished checkpoint {wanted}, expected one of {', '.join(map(str, there))}")
    return run / "checkpoints" / f"t={there[-1] if wanted is None else wanted}"


# --- whether it fits --------------------------------------------------------------------------------------------------


def _consistent(contract: Steering) -> tuple[Codec, Cone]:
    """Codec and cone of a steering.json whose parts speak of the same objectives. Raises CodecError."""
    codec, names = contract.make_codec(), contract.objectives
    try:
        cone = contract.cone()
    except DirectionError as e:
        raise CodecError(f"{steering.FILE}: region: {e}") from None
    calibrated = tuple(contract.calibration.get("names", names))
    for part, found in (("codec", codec.objectives), ("region", cone.names), ("calibration", calibrated)):
        if tuple(found) != names:
            raise CodecError(
                f"{steering.FILE}: {part} is of the objectives {', '.join(found)}, the checkpoint's are {', '.join(names)}: it "
                "was put together from two runs"
            )
    if len(contract.signs) != len(names) or any(sign not in (1, -1) for sign in contract.signs):
        raise CodecError(f"{steering.FILE}: signs are {list(contract.signs)}, expected 1 or -1 per objective")
    for preset, weights in contract.presets.items():
        try:
            parse(weights, names)
        except DirectionError as e:
            raise CodecError(f"{steering.FILE}: presets.{preset}: {e}") from None
    for direction_K in cone.grid(9):
        try:
            codec.render(tuple(direction_K.tolist()))
        except CodecError as e:
            raise CodecError(f"{steering.FILE}: codec {codec.version} cannot say the trained region: {e}") from None
    return codec, cone


def _matches_run(contract: Steering, folder: Path, run: Path, recipe: config.Run) -> None:
    """Whether a steering.json is that of its run and of its place in it. Raises CodecError."""
    names, rewards = tuple(recipe.rewards.objectives), _json(run / "inputs.json").get("reward model")
    contract.require(objectives=names, reward_model=None if rewards is None else str(rewards))
    place = (folder.parent if folder.name == "adapter" else folder).name
    signs = tuple(o.sign for o in recipe.rewards.objectives.values())
    said: dict[str, tuple[Any, Any]] = {
        "signs": (list(contract.signs), list(signs)),
        "initial": (contract.initial, recipe.policy.initial),
    }
    if place != "t=0":  # which may be adopted from another run, or trained on target values
        codec = codecs.make(recipe.directions.codec, names, recipe.directions.codec_options)
        said["codec"] = (dict(contract.codec), codec.to_dict())
        said["iteration"] = (f"t={contract.iteration}", place)
        trained, asked = contract.cone(), region(recipe.directions, names)
        # By angle: another machine's cosine may round otherwise.
        far = angle_between_deg(trained.axis, asked.axis) + abs(trained.half_angle_deg - asked.half_angle_deg)
        if far > 1e-6:
            said["region"] = (dict(contract.region), asked.to_dict())
        if calibration := _json(run / "rewards/calibration.json"):
            said["calibration"] = (dict(contract.calibration), calibration)
    for key, (here, there) in said.items():
        if here != there:
            raise CodecError(
                f"{folder / steering.FILE} has {key} {str(here)[:120]}, the run {run.name} has {str(there)[:120]}: the "
                "checkpoint is of another run, or was put together from two"
            )


def has_weights(folder: Path) -> bool:
    """Whether a folder holds full weights or an adapter, as safetensors."""
    described = any((folder / file).is_file() for file in ("config.json", "adapter_config.json"))
    return described and any(folder.glob("*.safetensors"))


def _json(path: Path) -> dict[str, Any]:
    return (durable.parse_json(path.read_bytes()) if path.is_file() else None) or {}
