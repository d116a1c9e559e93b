"""API keys: a file of hashes that only its owner may read. On by default; a server runs without only when told to.

key = new_key("keys.json", "alice")              # 'rl-...', shown this once
ring = KeyRing("keys.json")
ring.owner("rl-...")                             # 'key-3fa2...', or None
revoke("keys.json", "alice")                     # servers that run notice within a second

A key is 32 random bytes. Nobody can guess one, so a plain SHA-256 keeps it as well as a slow hash keeps a password, and a
request pays microseconds for it. The digest is compared with every entry in constant time, found or not.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import stat
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rhumbline.durable import TEMPORARY
from rhumbline.errors import UserError, did_you_mean

FORMAT = 1
PREFIX = "rl-"
_FRESH_S = 1.0  # how long a ring believes its file before it looks again


class KeyFileError(UserError):
    """A key file is missing, unsafe or broken, or lacks the name."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One key, without the key."""

    id: str  # names the owner in logs, quotas and profiles
    name: str  # for people
    sha256: str


def new_key(path: str | Path, name: str) -> str:
    """Make a key, add its hash to the file (made with mode 0600 where missing) and return it. Raises KeyFileError."""
    path = Path(path)
    if not name.strip() or not name.isprintable() or len(name) > 64:
        raise KeyFileError(f"a key needs a printable name of 1 to 64 characters, got {name!r}")
    with _alone(path):
        entries = read(path) if path.exists() else []
        if any(entry.name == name for entry in entries):
            raise KeyFileError(
                f"{path} already holds a key named {name!r}: take another name, or revoke that one first"
            )
        key = PREFIX + secrets.token_urlsafe(32)
        _write(path, [*entries, Entry(id=f"key-{secrets.token_hex(6)}", name=name, sha256=_digest(key))])
    return key


def revoke(path: str | Path, name: str) -> None:
    """Take a key away. Raises KeyFileError where there is none of that name."""
    path = Path(path)
    with _alone(path):
        entries = read(path)
        kept = [entry for entry in entries if entry.name != name]
        if len(kept) == len(entries):
            known = [entry.name for entry in entries]
            raise KeyFileError(
                f"{path} holds no key named {name!r}.{did_you_mean(name, known)} Known: {', '.join(known)}"
            )
        _write(path, kept)


def read(path: str | Path) -> list[Entry]:
    """The entries of a key file. Raises KeyFileError where it is missing, broken, or readable by others."""
    path = Path(path)
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        if mode & 0o077:
            raise KeyFileError(f"{path} has mode {mode:04o}, others may read or change it: chmod 600 {path}")
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format"] != FORMAT:
            raise KeyFileError(f"{path} has format {data['format']}, this Rhumbline reads {FORMAT}")
        entries = [Entry(**entry) for entry in data["keys"]]
        if any(len(bytes.fromhex(entry.sha256)) != 32 for entry in entries):
            raise ValueError("a hash is no SHA-256")
        return entries
    except FileNotFoundError:
        raise KeyFileError(f"{path} does not exist: make a key first, or say that the server needs none") from None
    except (ValueError, TypeError, KeyError, OSError) as e:
        raise KeyFileError(f"{path} cannot be read as a key file: {e}") from None


class KeyRing:
    """The keys of a file, read again when it changes. Raises KeyFileError where it cannot be read at the start."""

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = Path(path)
        self._clock = clock
        self._lock = threading.Lock()
        self._seen = self._stamp()  # before it is read: what changes in between is seen at the next look
        self._entries = read(self._path)
        self._looked = clock()

    def owner(self, key: str) -> str | None:
        """The id of the entry whose key this is, or None. Takes as long whichever entry it is."""
        self._refresh()
        digest = _digest(key)
        found = None
        for entry in self._entries:
            if hmac.compare_digest(entry.sha256, digest):
                found = entry.id
        return found

    def _refresh(self) -> None:
        """Read the file again where it changed. One that cannot be read any more opens nothing: no key is known."""
        with self._lock:
            if self._clock() - self._looked < _FRESH_S:
                return
            self._looked = self._clock()
            stamp = self._stamp()
            if stamp != self._seen:
                try:
                    self._entries = read(self._path)
                except KeyFileError:
                    self._entries = []
                self._seen = stamp

    def _stamp(self) -> tuple[int, int, int, int]:
        try:
            about = self._path.stat()
        except OSError:
            return (0, 0, 0, 0)
        return (about.st_mtime_ns, about.st_size, about.st_ino, about.st_mode)


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """One writer at a time, over processes: of two that read the same entries the later would drop the other's key."""
    try:
        descriptor = os.open(path.with_name(f".{path.name}.lock"), os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as e:
        raise KeyFileError(f"{path} cannot be written: {e}") from None
    with os.fdopen(descriptor, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write(path: Path, entries: list[Entry]) -> None:
    """Replace the file at once. Not durable.replace: this one is made with mode 0600 before its first byte is written."""
    data = json.dumps({"format": FORMAT, "keys": [asdict(entry) for entry in entries]}, indent=2) + "\n"
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}{TEMPORARY}")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as e:
        temporary.unlink(missing_ok=True)
        raise KeyFileError(f"{path} cannot be written: {e}") from None
