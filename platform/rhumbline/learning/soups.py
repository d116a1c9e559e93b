"""Rewarded soups (Rame et al. 2023, arXiv:2306.04488): one policy per objective, interpolated by the direction afterwards.

    weights = soup_weights((0.8, -0.6), signs=(1, -1))                  # (0.571, 0.429): convex
    policies = {"helpfulness": Path("runs/helpful/checkpoints/t=1"), "verbosity": Path("runs/concise/checkpoints/t=1")}
    interpolate("embedded", policies, dict(zip(policies, weights)), "soups/37deg")

    theta = theta_base + sum_k w_k (theta_k - theta_base)

The sum is taken in the space of whole weights W, tensor by tensor in fp32, and stored in bf16, which keeps little of policies
that have hardly moved: `rounding` in soup.json says how much was lost. A policy that is a LoRA is merged
first, W + scale * B A. Averaging the factors is another function: (sum_k a_k B_k)(sum_k a_k A_k) has the cross terms
a_j a_k B_j A_k of adapters that never met, which is what peft's `add_weighted_adapter(combination_type="linear")` returns.

K objectives.
"""

from __future__ import annotations

import json
import math
import shutil
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rhumbline import durable
from rhumbline.errors import DirectionError, TrainingError, did_you_mean
from rhumbline.learning.policy import load_adapter, load_tokenizer, merge_adapter, resolve

_SINGLE, _INDEX, _ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_model.safetensors"
SOUP = "soup.json"
# What config.json says of the function around the weights that no tensor's name or shape does.
_AROUND = ("model_type", "num_attention_heads", "num_key_value_heads", "hidden_act", "rope_parameters")
_ZERO = 1e-9  # a component of a unit vector below this is rounding, such as cos(90 degrees)


def soup_weights(
    direction: Sequence[float], signs: Sequence[int], names: Sequence[str] | None = None
) -> tuple[float, ...]:
    """w_k = |v_k| / sum_j |v_j|, (K,): convex weights of the policies, one per objective.

    Policy k was trained to raise sign_k times objective k, so a soup has nothing to follow sign_k * v_k < 0 with: that is a
    DirectionError, as is a direction of zeros. `names` of the objectives are for the message.
    """
    if len(direction) != len(signs):
        raise DirectionError(f"the direction has {len(direction)} weights, the soup {len(signs)} policies")
    if not all(math.isfinite(v) for v in direction):
        raise DirectionError(f"direction weights must be finite numbers, got {list(direction)}")
    for k, (v, sign) in enumerate(zip(direction, signs, strict=True)):
        if v * sign < -_ZERO:
            raise DirectionError(
                f"the direction weighs {names[k] if names else f'objective {k}'} by {v:+.4g}, and its policy was trained for "
                f"{'more' if sign > 0 else 'less'} of it: a soup only mixes what its policies learned. Give 0 or a "
                f"{'positive' if sign > 0 else 'negative'} weight, or train that policy for the other way"
            )
    total = sum(abs(v) for v in direction)
    if total <= _ZERO:
        raise DirectionError("direction weights are all zero: at least one objective must count")
    return tuple(abs(v) / total for v in direction)


def interpolate(
    base_dir: str | Path,
    policy_dirs: Mapping[str, Path],
    weights: Mapping[str, float],
    out_dir: str | Path,
    trust_remote_code: bool = False,
) -> Path:
    """Write base + sum_k w_k (theta_k - base) to `out_dir`, with the base's configuration and tokenizer. Returns the folder.

    Beside the weights soup.json: `weights`, and `rounding`, |stored - exact| / |exact - base| over all weights: 0 is all kept.

    base = 1.0, policies 3.0 and 2.0 with weights 0.25 and 0.75: 1 + 0.25 * 2 + 0.75 * 1 = 2.25. The weights need not sum to 1.

    Every policy is a folder of full weights or of a LoRA of the base. At no time is more held in memory than one of the
    base's shards in bf16 and a few tensors in fp32; merging an adapter holds one model. Inputs are only read.
    Raises TrainingError, naming the tensor, where a policy does not stem from this base or a weight is not finite.
    """
    _check_weights(policy_dirs, weights)
    base, target = resolve(base_dir), Path(out_dir)
    if target.exists():
        raise TrainingError(f"{target} exists already: a soup is written to a new folder")
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=durable.TEMPORARY, dir=target.parent))
    try:
        merged = {
            name: _full(base, Path(folder), work / "merged" / str(k), trust_remote_code)
            for k, (name, folder) in enumerate(policy_dirs.items())
        }
        for name, folder in merged.items():
            _same_function(base, folder, name, trust_remote_code)
        soup = work / "soup"
        soup.mkdir()
        rounding = _write_weights(base, merged, weights, soup, trust_remote_code)
        about = {"weights": dict(weights), "rounding": rounding}
        durable.replace(soup / SOUP, (durable.to_json(about) + "\n").encode())
        _write_rest(base, soup, trust_remote_code)
        soup.chmod(0o755)
        soup.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target


def check_policy(base_dir: str | Path, name: str, folder: Path, trust_remote_code: bool = False) -> None:
    """Whether the policy of an objective can stem from the base, within seconds at any size: before hours go into the others.

    An adapter: by the fingerprint of its base, its tensors and their shapes. Full weights: by the configuration, all names and
    shapes, and the values of the smallest matrix; `interpolate` looks at all of them. Raises TrainingError or ConfigError.
    """
    base = resolve(base_dir)
    if _is_adapter(folder):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter")  # no weights are needed
            load_adapter(_empty(base, trust_remote_code), folder)
        return
    policy = resolve(folder)
    _same_function(base, policy, name, trust_remote_code)
    with _tensors(base, trust_remote_code) as of_base, _tensors(policy, trust_remote_code) as of_policy:
        _same_names(of_base, of_policy, name, policy)
        shapes = {key: _shape(of_base, key) for key in of_base}
        for key, shape in shapes.items():
            if (found := _shape(of_policy, key)) != shape:
                raise _other_shape(_whose(name, policy), key, found, shape)
        matrices = [key for key, shape in shapes.items() if len(shape) > 1]
        if matrices:
            _mix(
                min(matrices, key=lambda key: math.prod(shapes[key])),
                of_base,
                {name: of_policy},
                {name: policy},
                {name: 1.0},
            )


def _check_weights(policy_dirs: Mapping[str, Path], weights: Mapping[str, float]) -> None:
    if not policy_dirs:
        raise TrainingError("a soup needs at least one policy beside the base")
    for name in [*policy_dirs, *weights]:
        if name not in policy_dirs or name not in weights:
            lacks, known = ("policy", policy_dirs) if name not in policy_dirs else ("weight", weights)
            raise TrainingError(f"the soup has no {lacks} for {name!r}.{did_you_mean(name, known)} {list(known)}")
    for name, weight in weights.items():
        if not math.isfinite(weight):
            raise TrainingError(f"the weight of {name!r} is {weight}, expected a finite number")


def _full(base: Path, folder: Path, merged: Path, trust_remote_code: bool) -> Path:
    """A folder of full weights: `folder` itself, or the base with the LoRA in it merged."""
    if _is_adapter(folder):
        return merge_adapter(base, folder, merged, trust_remote_code=trust_remote_code)
    return resolve(folder)


def _is_adapter(folder: Path) -> bool:
    return (folder / _ADAPTER).is_file() and not (folder / "config.json").is_file()


# --- weights ----------------------------------------------------------------------------------------------------------


def _write_weights(
    base: Path, policies: Mapping[str, Path], weights: Mapping[str, float], soup: Path, trust_remote_code: bool
) -> float:
    """The soup's safetensors, one shard per shard of the base, and their index where there are several. Returns `rounding`."""
    with ExitStack() as stack:
        of_base = stack.enter_context(_tensors(base, trust_remote_code))
        of_policies = {
            name: stack.enter_context(_tensors(folder, trust_remote_code)) for name, folder in policies.items()
        }
        for name, tensors in of_policies.items():
            _same_names(of_base, tensors, name, policies[name])
        shards: dict[str, list[str]] = {}
        for key, (file, _) in of_base.items():
            shards.setdefault(file, []).append(key)
        total, lost, asked = 0, 0.0, 0.0
        for file, keys in shards.items():
            shard: dict[str, torch.Tensor] = {}
            for key in keys:
                exact = _mix(key, of_base, of_policies, policies, weights)
                shard[key] = exact.bfloat16() if exact.is_floating_point() else exact
                if exact.is_floating_point():
                    lost += float((shard[key].float() - exact).double().square().sum())
                    asked += float((exact - of_base[key][1].get_tensor(key).float()).double().square().sum())
            total += sum(tensor.numel() * tensor.element_size() for tensor in shard.values())
            save_file(shard, soup / file, metadata={"format": "pt"})
    if len(shards) > 1 or _SINGLE not in shards:
        index = {"metadata": {"total_size": total}, "weight_map": {key: file for key, (file, _) in of_base.items()}}
        durable.replace(soup / _INDEX, json.dumps(index, indent=2).encode())
    return math.sqrt(lost / asked) if asked > 0 else 0.0


Tensors = Mapping[str, tuple[str, Any]]  # name -> (file, the open safetensors that holds it)


@contextmanager
def _tensors(folder: Path, trust_remote_code: bool) -> Iterator[Tensors]:
    """Where the tensors of a policy lie, its files open for reading. A tied head is left out: the embedding is its one name."""
    index = folder / _INDEX
    files = [_SINGLE]
    if index.is_file():
        files = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    with ExitStack() as stack:
        found: dict[str, tuple[str, Any]] = {}
        for file in files:
            try:
                opened = stack.enter_context(safe_open(folder / file, framework="pt", device="cpu"))
            except (OSError, SafetensorError) as e:
                raise TrainingError(f"{folder} holds no readable {file}: {e}") from e
            found |= dict.fromkeys(opened.keys(), (file, opened))
        head = _tied_head(folder, trust_remote_code)
        if head is not None:
            found.pop(head, None)
        yield found


def _tied_head(folder: Path, trust_remote_code: bool) -> str | None:
    """The name of the output layer's weight where it is the embedding's; None where it is a weight of its own."""
    model = _empty(folder, trust_remote_code)
    if not model.config.tie_word_embeddings:
        return None
    head = next(name for name, module in model.named_modules() if module is model.get_output_embeddings())
    return f"{head}.weight"


def _empty(folder: Path, trust_remote_code: bool) -> Any:
    """The model of a folder, its shape alone: it takes no memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM
    settings = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return auto.from_config(settings, trust_remote_code=trust_remote_code)


def _same_function(base: Path, policy: Path, name: str, trust_remote_code: bool) -> None:
    """A soup has the base's configuration: a policy that computes something else with its weights cannot be mixed."""
    from transformers import AutoConfig

    ours, theirs = (AutoConfig.from_pretrained(f, trust_remote_code=trust_remote_code) for f in (base, policy))
    for key in _AROUND:
        here, there = getattr(ours, key, None), getattr(theirs, key, None)
        if here != there:
            raise TrainingError(
                f"{_whose(name, policy)} does not stem from this base: its config.json has {key} {there!r}, the base's {here!r}"
            )


def _whose(name: str, folder: Path) -> str:
    return f"the policy of {name!r} ({folder})"


def _shape(tensors: Tensors, key: str) -> tuple[int, ...]:
    return tuple(tensors[key][1].get_slice(key).get_shape())


def _other_shape(where: str, key: str, found: Sequence[int], expected: Sequence[int]) -> TrainingError:
    return TrainingError(
        f"{where} does not stem from this base: {key} has shape {tuple(found)}, expected {tuple(expected)}"
    )


def _same_names(base: Tensors, policy: Tensors, name: str, folder: Path) -> None:
    for key in sorted(base.keys() ^ policy.keys()):
        has, lacks = ("the base", "it") if key in base else ("it", "the base")
        raise TrainingError(
            f"{_whose(name, folder)} does not stem from this base: {has} has the tensor {key}, {lacks} does not"
        )


def _mix(
    key: str, base: Tensors, policies: Mapping[str, Tensors], folders: Mapping[str, Path], weights: Mapping[str, float]
) -> torch.Tensor:
    """One tensor of the soup, in fp32; whole numbers as they are."""
    stored: torch.Tensor = base[key][1].get_tensor(key)
    if not stored.is_floating_point():
        for name, tensors in policies.items():
            if not torch.equal(stored, tensors[key][1].get_tensor(key)):
                raise TrainingError(
                    f"{key} holds whole numbers and differs in the policy of {name!r} ({folders[name]})"
                )
        return stored.clone()
    W = _finite(stored.float(), key, "the base")
    out = W.clone()
    for name, tensors in policies.items():
        theirs = tensors[key][1].get_tensor(key)
        where = _whose(name, folders[name])
        if theirs.shape != W.shape:
            raise _other_shape(where, key, theirs.shape, W.shape)
        delta = _finite(theirs.float(), key, where) - W
        # Training moves a matrix by a small part of its length; two that were drawn apart differ by 1.4 times it.
        if W.ndim > 1 and delta.norm() > W.norm():
            raise TrainingError(
                f"{where} does not stem from this base: {key} differs from the base's by {float(delta.norm()):.3g}, which is "
                f"more than its whole length, {float(W.norm()):.3g}"
            )
        out.add_(delta, alpha=weights[name])
    return _finite(out, key, "the soup")


def _finite(tensor: torch.Tensor, key: str, where: str) -> torch.Tensor:
    if not bool(torch.isfinite(tensor).all()):
        bad = int((~torch.isfinite(tensor)).sum())
        raise TrainingError(f"{key} of {where} has {bad} values that are not finite: no soup is made of it")
    return tensor


# --- the rest ---------------------------------------------------------------------------------------------------------


def _write_rest(base: Path, soup: Path, trust_remote_code: bool) -> None:
    """Configuration, generation settings and tokenizer of the base. Not its steering.json: a soup is steered by its weights."""
    from transformers import AutoConfig

    settings = AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code)
    settings.dtype = torch.bfloat16
    settings.save_pretrained(soup)
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", soup / "generation_config.json")
    load_tokenizer(base, trust_remote_code).save_pretrained(soup)
