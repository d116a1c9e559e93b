"""Whether the weights in a folder can be those that its steering.json speaks of.

    check_weights(Path("checkpoints/t=2"), initial="embedded")

steering.json carries the fingerprint of the weights that it was written beside (`Steering.require_weights`). It also names the
policy that training started from, and whether those weights can stem from it is looked at here: an adapter carries the
fingerprint of its base and must fit it tensor by tensor; full weights must have the base's configuration, names and shapes, a
smallest matrix that training can have moved there, and must not be the base itself. It tells apart another model, another base
and an untrained policy, also where a steering.json was written by hand.
"""

from __future__ import annotations

from pathlib import Path

from rhumbline.errors import CodecError, ConfigError, TrainingError
from rhumbline.fingerprint import fingerprint


def check_weights(folder: Path, initial: str, trust_remote_code: bool = False) -> bool:
    """False where the initial policy is not on this machine (a hub name), and nothing was looked at. Raises CodecError."""
    from rhumbline.learning.policy import EMBEDDED, resolve
    from rhumbline.learning.soups import check_policy

    if initial != EMBEDDED and not Path(initial).expanduser().is_dir():
        return False
    try:
        base = resolve(initial)
        check_policy(base, "steering.json", folder, trust_remote_code)
    except (ConfigError, TrainingError) as e:
        raise CodecError(
            f"{folder}: these are not the weights of its steering.json, which was trained from {initial}: {e}"
        ) from e
    if fingerprint(folder) == fingerprint(base):
        raise CodecError(
            f"{folder} holds the weights of {initial} itself, which no direction was taught: its steering.json belongs to others"
        )
    return True
