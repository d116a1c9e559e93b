"""Every error Rhumbline raises on purpose.

    RhumblineError              where no UserError: one clear message, exit code 1
    ├── UserError               bad input: one clear message, exit code 2, nothing lost
    │   ├── CodedError          the same with a code for programs
    │   ├── ConfigError         a recipe or an override: names the key, the value and the remedy
    │   ├── DataError           a data file or a row in it
    │   │   └── HubError        a hub that cannot be reached from this machine
    │   ├── DirectionError      a direction that cannot be read or does not fit the objectives
    │   ├── CodecError          a codec that does not match the checkpoint or cannot say a direction
    │   ├── ResourceError       the cluster lacks what the recipe asks for
    │   └── RunError            a run directory of another recipe, in use, or missing
    ├── GenerationError         a generator failed on a unit of work
    ├── ScoringError            a scorer failed on a unit of work (counted; never a reward of zero)
    ├── WeightSyncError         an engine answers with other weights than the learner's
    ├── TrainingError           a learner stopped: a loss that is NaN, a broken checkpoint, no samples left
    └── StoreError              the run directory cannot be written or read (full disk, broken shard)

Defined beside the code that alone raises them: SteeringRefused (serving.requests), a UserError, QuizError (users.quiz) and
PeopleError (users.store), which are CodedErrors, and EngineError (serving.protocols).

All of them carry plain strings in `args`, so they cross process borders (Ray pickles them) unchanged.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable

EXIT_USER_ERROR = 2
EXIT_STOPPED = 1  # by any other error of this tree


class RhumblineError(Exception):
    """Root of the tree. Command line and jobs print the message alone, and exit with `EXIT_STOPPED` where it is no UserError."""


class UserError(RhumblineError):
    """Bad input. Command line and jobs print the message alone and exit with `EXIT_USER_ERROR`."""


class CodedError(UserError):
    """Bad input, with a `code` for programs that says which kind."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message, code)

    @property
    def code(self) -> str:
        return str(self.args[1])

    def __str__(self) -> str:
        return str(self.args[0])


class ConfigError(UserError):
    """A recipe or an override is wrong."""


class DataError(UserError):
    """A data file, or a row in it, is wrong."""


class HubError(DataError):
    """A hub cannot be reached from this machine; another one may reach it."""


class DirectionError(UserError):
    """A direction cannot be read or does not fit the objectives."""


class CodecError(UserError):
    """A codec does not match the checkpoint, or cannot express a direction."""


class ResourceError(UserError):
    """The cluster lacks the resources that the recipe asks for."""


class RunError(UserError):
    """A run directory belongs to another recipe, is in use, or does not exist."""


class GenerationError(RhumblineError):
    """A generator failed on a unit of work."""


class ScoringError(RhumblineError):
    """A scorer failed on a unit of work."""


class WeightSyncError(RhumblineError):
    """An engine answers with other weights than the learner's."""


class TrainingError(RhumblineError):
    """A learner stopped."""


class StoreError(RhumblineError):
    """The run directory cannot be written or read."""


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """`" Did you mean 'helpfulness'?"`, or an empty string when nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {close[0]!r}?" if close else ""
