"""An actor that does what the pool's tests ask of it. In a file of its own, so that Ray's workers import it."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rhumbline.errors import ConfigError, GenerationError


class Worker:
    """Doubles numbers, after a while, or dies."""

    def __init__(self, folder: str, setup: str = "fine") -> None:
        self.folder, self.how = Path(folder), setup
        self.version = "none"

    def setup(self) -> None:
        if self.how == "broken":
            raise ConfigError("generator.engine.max_model_length: unknown to vLLM")
        if self.how == "fatal":
            os.kill(os.getpid(), signal.SIGKILL)
        self._note("setup")

    def pid(self) -> int:
        return os.getpid()

    def load(self, version: str) -> str:
        self.version = version
        return version

    def loaded(self, number: int) -> tuple[int, str]:
        return number, self.version

    def double(self, number: int, seconds: float = 0.0) -> int:
        self._note(f"call-{number}")
        time.sleep(seconds)
        return 2 * number

    def die_once(self, number: int) -> int:
        """Killed in the middle of its first unit 3."""
        if number == 3 and self._note("died") == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.double(number)

    def die_at_3(self, number: int) -> int:
        """Unit 3 is poison."""
        if number == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.double(number)

    def hang_once(self, number: int) -> int:
        if number == 3 and self._note("hung") == 1:
            time.sleep(600)
        return self.double(number)

    def refuse_3(self, number: int) -> int:
        self._note(f"call-{number}")
        if number == 3:
            raise GenerationError("prompt p3 has 9000 tokens")
        return 2 * number

    def refuse_all(self, number: int) -> int:
        self._note(f"call-{number}")
        raise GenerationError(f"the engine is broken: {number}")

    def wrong(self, number: int) -> int:
        raise ValueError(f"a bug at {number}")

    def _note(self, what: str) -> int:
        """Append to a file that outlives the process; how often it happened so far."""
        with (self.folder / what).open("a") as file:
            file.write("x")
        return (self.folder / what).stat().st_size
