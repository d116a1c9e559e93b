"""What a job says before it starts: resources wanted against those that the cluster has, and for --dry-run the whole plan."""

from __future__ import annotations

import json
from collections.abc import Mapping

from cluster import placement
from cluster.session import nodes
from rhumbline import config
from rhumbline.data.chat import encode, render
from rhumbline.errors import ResourceError, RhumblineError
from rhumbline.learning.policy import load_tokenizer, resolve
from rhumbline.plan import RESPONSE, Plan


def resources(plan: Plan, have: Mapping[str, float]) -> None:
    """Raises ResourceError, with both figures, where the actors do not fit the cluster side by side."""
    rows = [(w.role, w.count, w.num_cpus, w.num_gpus) for w in plan.wanted]
    missing = [*placement.lacking(have, placement.totals(rows)), *placement.too_large(nodes(), rows)]
    if missing:
        table = "\n".join(placement.table(rows, have))
        raise ResourceError(
            f"the cluster lacks what the recipe asks for: {'; '.join(missing)}\n{table}\n"
            "Lower num_cpus, num_gpus or replicas of generator, scorer and learner, or add nodes"
        )


def check(plan: Plan, have: Mapping[str, float]) -> None:
    """What a run needs to know before it makes its directory: resources and the length of every prompt."""
    resources(plan, have)
    policy = plan.recipe.policy
    folder = resolve(policy.initial)
    model = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    plan.check_prompts(load_tokenizer(folder, policy.trust_remote_code), model.get("max_position_embeddings"))


def show(plan: Plan, have: Mapping[str, float]) -> None:
    """Print the resolved recipe, the plan and three rendered training samples. Starts nothing, writes nothing."""
    print(config.dump(plan.recipe))
    print("\n".join(plan.lines(_rendered(plan))))
    rows = [(w.role, w.count, w.num_cpus, w.num_gpus) for w in plan.wanted]
    print("\n" + "\n".join(placement.table(rows, have)))
    for line in [*placement.lacking(have, placement.totals(rows)), *placement.too_large(nodes(), rows)]:
        print(f"NOT ENOUGH  {line}")


def _rendered(plan: Plan) -> list[str]:
    try:
        tokenizer = load_tokenizer(resolve(plan.recipe.policy.initial), plan.recipe.policy.trust_remote_code)
    except (RhumblineError, OSError) as e:  # a hub that cannot be reached from here may be reached from the cluster
        print(f"no tokenizer of {plan.recipe.policy.initial} here, so no rendered samples: {str(e).splitlines()[0]}\n")
        return []
    queries = plan.first_queries(3)
    return [render(encode(query.messages, RESPONSE, tokenizer), tokenizer) for query in queries]
