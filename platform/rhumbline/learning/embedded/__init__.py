"""The shipped t=0 policy: a LoRA of SmolLM2-135M-Instruct with its steering.json and card, made by jobs/recipes/smol.yaml."""

from __future__ import annotations

from pathlib import Path

from rhumbline.errors import ConfigError


def adapter() -> Path:
    """Its folder. Raises ConfigError where this installation has none."""
    folder = Path(__file__).parent / "adapter"
    if not (folder / "adapter_model.safetensors").is_file():
        raise ConfigError(
            f"initial.adapter 'embedded': {folder} holds no adapter. Make one with `python jobs/dpa.py --recipe "
            "jobs/recipes/smol.yaml` and name its checkpoints/t=2/adapter, or use initial.strategy relabel"
        )
    return folder
