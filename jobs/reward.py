#!/usr/bin/env python
"""Fit regression reward heads on a frozen language model, in closed form.

ray job submit --working-dir . -- python jobs/reward.py --recipe jobs/recipes/rewards/oasst.yaml
python jobs/reward.py --recipe jobs/recipes/rewards/oasst.yaml features.layer=18 --out rewards/mine

labels      rated answers on 0-100; what was not rated stays missing
features    hidden states of the frozen backbone over each answer, pooled
fit         one ridge regression per head; its penalty by cross-validation over prompts
card        how well each head predicts ratings that it has not seen, beside what length alone predicts
save        heads.safetensors, schema.json, card.json, card.md
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhumbline.cli import user_errors
from rhumbline.config import dump
from rhumbline.rewards.recipe import RewardRecipe, load

if TYPE_CHECKING:
    from rhumbline.rewards.features import Pair
    from rhumbline.rewards.labels import Answers

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "rewards" / "oasst.yaml",
    out: Annotated[Path | None, typer.Option(help="folder to write to; rewards/<name> by default")] = None,
    local: Annotated[bool, typer.Option("--local", help="run the backbone in this process, without Ray")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
) -> None:
    """Fit regression reward heads on a frozen language model."""
    with user_errors():
        settings = load(recipe, overrides or [])
        folder = out if out is not None else Path("rewards") / settings.name
        command = " ".join(["python jobs/reward.py --recipe", _shown(recipe), *(overrides or [])])
        from rhumbline.rewards.labels import gather
        from rhumbline.rewards.regression import check_target
        from rhumbline.store import lasting

        check_target(lasting(folder))
        answers = gather(settings)
        if dry_run:
            show(settings, answers, folder)
        else:
            run(settings, answers, folder, local, command)


def run(recipe: RewardRecipe, answers: Answers, out: Path, local: bool, command: str) -> None:
    """The algorithm."""
    import numpy as np

    from rhumbline.learning.policy import resolve
    from rhumbline.rewards import card
    from rhumbline.rewards.features import identity
    from rhumbline.rewards.fitting import describe, fit
    from rhumbline.rewards.invariance import PROBES

    extracted = (extract_here if local else extract_on_ray)(recipe, [*answers.pairs, *PROBES])
    features, lengths = zip(*extracted, strict=True)
    features_ND, probes_PD = np.split(np.concatenate(features), [len(answers.pairs)])
    lengths_N, probes_P = np.split(np.concatenate(lengths), [len(answers.pairs)])

    known = identity(resolve(recipe.backbone), recipe.trust_remote_code)
    heads, fits = fit(recipe, answers, features_ND, lengths_N, known)
    heads = heads.with_probes(heads.score(probes_PD, probes_P))
    told = describe(recipe, answers, heads, fits, features_ND, lengths_N, command)
    heads.save(out)
    card.write(out, told)
    print(card.markdown(told))
    print(f"heads: {out}")


def shards(recipe: RewardRecipe, pairs: list[Pair]) -> list[list[Pair]]:
    """Units of work."""
    size = recipe.extraction.shard
    return [pairs[i : i + size] for i in range(0, len(pairs), size)]


def extract_here(recipe: RewardRecipe, pairs: list[Pair]) -> Iterator[Any]:
    """Features of each shard, in order, by this process."""
    from rhumbline.rewards.features import Extractor

    extractor = Extractor(**_extractor(recipe))
    extractor.setup()
    done = 0
    for shard in shards(recipe, pairs):
        yield extractor.features(shard)
        done += len(shard)
        print(f"features  {done}/{len(pairs)} answers", flush=True)


def extract_on_ray(recipe: RewardRecipe, pairs: list[Pair]) -> Iterator[Any]:
    """The same by a pool of actors."""
    from actors.pool import Failed, Pool
    from actors.progress import Progress
    from cluster import placement
    from cluster.session import nodes, session
    from rhumbline.errors import ResourceError, ScoringError
    from rhumbline.rewards.features import Extractor

    wanted, units = recipe.extraction, shards(recipe, pairs)
    rows = [("extractor", wanted.replicas, wanted.num_cpus, wanted.num_gpus)]
    with session() as have:
        missing = [*placement.lacking(have, placement.totals(rows)), *placement.too_large(nodes(), rows)]
        if missing:
            raise ResourceError(f"the cluster lacks what the recipe asks for (extraction): {'; '.join(missing)}")
        pool = Pool(
            Extractor,
            _extractor(recipe),
            role="extractor",
            replicas=wanted.replicas,
            num_cpus=wanted.num_cpus,
            num_gpus=wanted.num_gpus,
            deadline_s=wanted.deadline_s,
        )
        with pool, Progress("features", len(pairs), run=recipe.name, unit="answers") as progress:
            for i, result in pool.map("features", ((i, (unit,)) for i, unit in enumerate(units))):
                if isinstance(result, Failed):
                    raise ScoringError(f"the features of shard {i} failed {result.attempts} times: {result.error}")
                yield result
                progress.advance(len(units[i]))


def show(recipe: RewardRecipe, answers: Answers, out: Path) -> None:
    """Print the resolved recipe and what it would read and write."""
    import numpy as np

    print(dump(recipe))
    for source in recipe.ratings:
        print(f"{source}: " + ", ".join(f"{number} {what}" for what, number in answers.counts(source).items()))
    for head, labels_N in zip(recipe.heads(), answers.labels_NH.T, strict=True):
        rated = labels_N[~np.isnan(labels_N)]
        print(f"{head.name}: {len(rated)} labels, mean {rated.mean():.1f}, std {rated.std():.1f} of 0-100")
    print(f"would write: {out}")


def _extractor(recipe: RewardRecipe) -> dict[str, Any]:
    from rhumbline.rewards.fitting import spec_of

    wanted = recipe.extraction
    return {
        "folder": recipe.backbone,
        "spec": spec_of(recipe),
        "token_budget": wanted.token_budget,
        "threads": wanted.threads,
        "trust_remote_code": recipe.trust_remote_code,
    }


def _shown(recipe: Path) -> str:
    """A shipped recipe as one types it: no path of this machine goes into a card."""
    path = recipe.resolve()
    return str(path.relative_to(HERE.parent) if path.is_relative_to(HERE.parent) else path.name)


if __name__ == "__main__":
    typer.run(main)
