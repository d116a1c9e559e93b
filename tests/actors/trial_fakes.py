"""A search of four points in the working folder, whose job answers at once: for tests of trials and of what Tune is told.

sweep = written(tmp_path)                # conftest.py has it as a fixture
run(sweep, 2)                            # {"reward": 10.0, "kl": 50.0}
other = changed(["max_concurrent=2"])    # the same search, but for this
"""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from actors import trial
from rhumbline.config import Run, SweepRecipe, load_sweep
from rhumbline.plan import Plan
from tests.rhumbline.sweep_fakes import BASE as TWO_OBJECTIVES

ACTORS = """
initial: {strategy: none}
generator: {num_cpus: 0.5}
scorer: {num_cpus: 0.25}
learner: {num_workers: 2, num_cpus: 1}
"""
BASE = TWO_OBJECTIVES + ACTORS
SWEEP = """
job: sweep
recipe: base.yaml
space:
  directions.fixed: {simplex: [preference, absolute], values: [0, 1]}
  ppo.kl.coefficient: {values: [0.02, 0.2]}
"""
# As jobs/ppo.py: it counts how often it ran, and its figures follow from the recipe.
JOB = """
def run(recipe, plan, runs, resume, asked):
    assert resume
    folder = runs / recipe.name
    folder.mkdir(exist_ok=True)
    with (folder / "runs").open("a") as file:
        file.write("x")
    (folder / "asked").write_text(asked)
    if recipe.ppo.kl.coefficient == 0.2 and recipe.directions.fixed["preference"] == 1.0:
        raise ValueError("NaN in the loss")
    return {"reward": recipe.directions.fixed["preference"] * 10, "kl": 1 / recipe.ppo.kl.coefficient}
"""


def written(folder: Path) -> SweepRecipe:
    """The search, once its files are in `folder`, which must be the working one."""
    (folder / "base.yaml").write_text(BASE)
    (folder / "ppo.py").write_text(JOB)
    (folder / "two.yaml").write_text(SWEEP)
    return load_sweep("two.yaml")


def changed(overrides: list[str]) -> SweepRecipe:
    return load_sweep("two.yaml", overrides)


def run(sweep: SweepRecipe, number: int, told: list[Any] | None = None) -> dict[str, float]:
    """The trial of a point, under the folder `sweep`; `told` hears its figures on the way."""
    folder = Path("sweep").absolute()
    heard = told if told is not None else []
    point = sweep.points()[number]
    return trial.run_trial(sweep, point, folder, Path(), heard.append, prepare=planned)


def planned(recipe: Run, prompts: str = "1") -> Plan:
    """In place of `Plan.make`, which would read the prompts."""
    plan: Any = SimpleNamespace(inputs=lambda: {"prompts": prompts})
    return plan
