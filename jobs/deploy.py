#!/usr/bin/env python
"""Serve a run behind an OpenAI-compatible API, on Ray Serve with vLLM; the same command updates what is served.

    python jobs/deploy.py runs/quickstart --new-key me             # prints a key once, keeps its hash
    python jobs/deploy.py runs/quickstart                          # until Ctrl-C, on a cluster of its own
    RAY_ADDRESS=auto python jobs/deploy.py runs/quickstart policy.replicas=2      # on a cluster that runs: comes back when ready
    python jobs/deploy.py runs/quickstart --write-config serve.yaml && serve run serve.yaml

check      steering.json against weights, rewards and codec; settings, keys, room: all before anything starts
start      the reward model, and the new policy beside the old one
switch     the HTTP app to the new policy, in place: requests under way end where they began
drain      the old policy
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rhumbline.cli import user_errors
from rhumbline.config.deploy import load_deploy


def main(
    run_or_checkpoint: Annotated[str, typer.Argument(help="a run, a checkpoint with steering.json, or 'embedded'")],
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, laid over the settings")] = None,
    config: Annotated[Path | None, typer.Option(help="a YAML file of settings")] = None,
    checkpoint: Annotated[int | None, typer.Option(min=0, help="t, of a run; its newest by default")] = None,
    new_key: Annotated[str | None, typer.Option(metavar="NAME", help="make an API key, print it once, and end")] = None,
    revoke_key: Annotated[str | None, typer.Option(metavar="NAME", help="take an API key away, and end")] = None,
    write_config: Annotated[
        Path | None, typer.Option(help="write what `serve run` and `serve deploy` take, and end")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="show what would be started, and start nothing")] = False,
) -> None:
    """Serve one model to many people, each with a direction of their own."""
    with user_errors():
        settings = load_deploy(overrides or [], config)
        from actors import deployment
        from rhumbline.serving.served import open_served

        if new_key is not None:
            print(deployment.make_key(settings, new_key))
            return
        if revoke_key is not None:
            deployment.take_key(settings, revoke_key)
            print(f"{revoke_key} opens nothing any more")
            return
        served = open_served(run_or_checkpoint, name=settings.name, checkpoint=checkpoint)
        plan = deployment.plan_of(served, settings)
        print("\n".join(plan.lines()), flush=True)
        if dry_run:
            return
        deployment.check_keys(settings)
        deployment.merge(served)
        if write_config is not None:
            print(f"wrote {deployment.write_config(plan, write_config)}: serve run {write_config}")
            return
        from actors import updating
        from actors.standing import room, standing, wait
        from cluster.session import nodes

        with standing() as own:
            updating.check_proxy(plan)
            updating.check_room(plan, settings, room(settings.update), nodes())
            updating.start_serve(plan)
            updating.roll_out(plan, settings)
            print(f"serving {plan.name} at {plan.url}/v1, playground at {plan.url}/playground/", flush=True)
            if own:
                print("Ctrl-C stops it", flush=True)
                wait()


if __name__ == "__main__":
    typer.run(main)
