#!/usr/bin/env python
"""Supervised fine-tuning in stages: general instructions first, then the target set (the thesis's pre_sft and sft).

ray job submit --runtime-env cluster/runtime_env.yaml -- python jobs/sft.py --recipe FILE --out /mnt/rhumbline/policies/mine
python jobs/sft.py --recipe jobs/recipes/sft/smol.yaml stages.sft.learner.epochs=3
python jobs/sft.py --recipe jobs/recipes/sft/smol.yaml --local --dry-run

data       conversations of each stage, packed; the assistant's tokens alone carry the loss; a share is held out of all stages
measure    the held-out loss of the policy that the stage starts from
learn      LoRA on its full weights, on Ray Train; killed, the same command goes on where it was
merge      the adapter into full weights: a second LoRA on top of the first would diverge
measure    the held-out loss again; the next stage starts from the merged weights

OUT/STAGE is in Hugging Face layout, its adapter/ beside the weights: give the last one as policy.initial to other jobs.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rhumbline import config
from rhumbline.cli import user_errors
from rhumbline.config import SftRecipe

if TYPE_CHECKING:
    from rhumbline.learning.stages import Stage

HERE = Path(__file__).resolve().parent


def main(
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the recipe")] = None,
    recipe: Annotated[Path, typer.Option(help="a YAML file")] = HERE / "recipes" / "sft" / "smol.yaml",
    out: Annotated[Path | None, typer.Option(help="folder to write to; policies/<name> by default")] = None,
    local: Annotated[bool, typer.Option("--local", help="run everything in this process, without Ray")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be done, and do nothing")] = False,
) -> None:
    """Fine-tune a policy on conversations, stage by stage."""
    with user_errors():
        settings = config.load_sft(recipe, overrides or [])
        from rhumbline.learning.policy import load_tokenizer, resolve
        from rhumbline.learning.stages import context_of, plan
        from rhumbline.store import lasting

        folder = out if out is not None else Path("policies") / settings.name
        lasting(folder)
        policy = resolve(settings.policy.initial)
        tokenizer = load_tokenizer(policy, settings.policy.trust_remote_code)
        stages = plan(settings, tokenizer, context_of(policy))
        if dry_run:
            show(settings, stages, tokenizer, folder)
            return
        run(settings, stages, folder, local, " ".join(["python jobs/sft.py --recipe", recipe.name, *(overrides or [])]))


def run(recipe: SftRecipe, stages: list[Stage], out: Path, local: bool, command: str) -> None:
    """The algorithm."""
    from actors.stages import card, describe, finished, learning, publish, steps_of, working
    from rhumbline.learning.stages import identities

    known, out = identities(recipe, stages), out.absolute()
    policy = recipe.policy.initial
    with working(out, recipe, stages, known) as work, learning(recipe, stages, local) as (train, measure):
        for stage, which in zip(stages, known, strict=True):
            folder = out / stage.name
            if finished(folder, which):
                print(f"{stage.name}: {folder}, finished before by this recipe on this data")
            else:
                before = measure(stage, policy)
                trained, result = train(stage, policy, work, which)
                after = measure(stage, str(trained))
                told = describe(recipe, stage, which, policy, before, after, result)
                publish(trained, folder, told, steps_of(work, which), stage, policy)
            policy = str(folder)
        print(card(out, recipe, command))
    print(f"policy: {policy}")


def show(recipe: SftRecipe, stages: list[Stage], tokenizer: Any, out: Path) -> None:
    """Print the resolved recipe, what each stage would learn, and three samples as the policy would see them."""
    from rhumbline.data.chat import render
    from rhumbline.data.dialogues import encode_example

    print(config.dump(recipe))
    for stage in stages:
        for source, counts in stage.counts.items():
            said = ", ".join(f"{number} {what}" for what, number in counts.items() if number or what == "train")
            print(f"{stage.name}, {source}: {said}")
        learner = stage.learner
        print(
            f"{stage.name}: {len(stage.examples)} samples with {stage.learned_tokens} learned tokens, {learner.epochs} epochs, "
            f"{stage.steps} steps of {learner.batch_size}, {learner.warmup_steps} of them to warm up"
        )
    first = [stage.examples[i] for i in range(3) for stage in stages if i < len(stage.examples)]
    for example in first[:3]:
        print(f"\n--- {example.id}\n{render(encode_example(example, tokenizer), tokenizer, max_characters=600)}")
    print(f"\nwould write: {out / stages[-1].name}")


if __name__ == "__main__":
    typer.run(main)
