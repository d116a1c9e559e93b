"""What is kept of people between requests: quizzes that go on, profiles, and which profile a key answers by.

    people = People("sqlite:///people.sqlite")                    # any SQLAlchemy URL
    people.save_quiz(owner, quiz_id, quiz.to_dict())
    people.change_quiz(owner, quiz_id, lambda state: answered(state, 3, "a"))     # one of two rival answers wins
    people.save_profile(owner, "me", {"helpfulness": 0.8, "verbosity": -0.6}, source="quiz", half_angle_deg=9.5)
    people.bind(owner, "me"); people.bound(owner)                 # the direction of that key's requests

An owner is the id of an API key, never the key itself; nobody sees or changes what another owner has. Every owner has
bounded numbers: the quiz that was longest untouched makes room for a new one, profiles do not. A quiz carries a version, and
a change counts only if the version is still the one that was read, so two answers to one question count once, over threads,
processes and machines alike. Whoever writes locks the one row of `people_schema`; SQLite, which has no such locks, locks its
file, runs with a write-ahead log and waits where the file is busy.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import re
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects.mysql import LONGTEXT, VARCHAR
from sqlalchemy.exc import ArgumentError, DatabaseError, IntegrityError, NoSuchModuleError, ProgrammingError

from rhumbline.errors import CodedError, StoreError, did_you_mean

State = dict[str, Any]
Source = Literal["quiz", "hand"]
BUSY_S = 10.0  # how long SQLite waits for a file that another process writes
PASSWORD = "RHUMBLINE_USERS_PASSWORD"  # environment: that of a URL's user, where the URL does not hold it
TRIES = 8  # of a change that a rival overtakes
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_CODES = Literal[
    "unknown_quiz", "unknown_profile", "too_many", "too_large", "conflict", "invalid_profile", "invalid_name"
]

_BIN = "utf8mb4_bin"  # of MySQL, whose own collation takes `Me` for `me`, and whose charset may know neither


def _key(length: int) -> Any:
    return sa.String(length).with_variant(VARCHAR(length, collation=_BIN), "mysql", "mariadb")


_LONG = sa.Text().with_variant(LONGTEXT(collation=_BIN), "mysql", "mariadb")  # their TEXT holds 64 KiB
_tables = sa.MetaData()
_version = sa.Table("people_schema", _tables, sa.Column("version", sa.Integer, primary_key=True))
_quizzes = sa.Table(
    "people_quizzes",
    _tables,
    sa.Column("owner", _key(128), primary_key=True),
    sa.Column("id", _key(64), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("touched", sa.Double, nullable=False),  # seconds since 1970
    sa.Column("state", _LONG, nullable=False),  # JSON
)
_profiles = sa.Table(
    "people_profiles",
    _tables,
    sa.Column("owner", _key(128), primary_key=True),
    sa.Column("name", _key(64), primary_key=True),
    sa.Column("weights", _LONG, nullable=False),  # JSON {objective: weight}
    sa.Column("source", _key(16), nullable=False),
    sa.Column("half_angle_deg", sa.Double, nullable=True),
    sa.Column("updated", sa.Double, nullable=False),
)
_bindings = sa.Table(
    "people_bindings",
    _tables,
    sa.Column("owner", _key(128), primary_key=True),
    sa.Column("name", _key(64), nullable=False),
)


def _first_tables(connection: sa.Connection) -> None:
    _tables.create_all(connection, tables=[_quizzes, _profiles, _bindings])


# Step n brings a database from version n to n + 1. A step that was released is never changed: it writes out its own tables
# once `_tables` has moved on.
MIGRATIONS: tuple[Callable[[sa.Connection], None], ...] = (_first_tables,)


class PeopleError(CodedError):
    """What is asked for is not there, or there is no room. `code` says which, for programs:

    unknown_quiz, unknown_profile, too_many, too_large, conflict, invalid_profile, invalid_name.
    """

    def __init__(self, message: str, code: _CODES) -> None:
        super().__init__(message, code)


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one owner may keep."""

    quizzes: int = 20
    profiles: int = 50
    objectives: int = 64  # of a profile
    state_bytes: int = 262_144  # of a quiz


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A direction under a name."""

    name: str
    weights: dict[str, float]  # by objective, as they were saved
    source: Source
    half_angle_deg: float | None  # how well the quiz knew it; None: set by hand
    updated: float  # seconds since 1970

    def to_dict(self) -> dict[str, Any]:
        """{"name", "weights", "source", "half_angle_deg", "updated"}."""
        return {name: getattr(self, name) for name in self.__slots__}


class People:
    """Quizzes, profiles and bindings in one database. Safe for threads; processes may share it."""

    def __init__(self, url: str = "sqlite:///people.sqlite", *, limits: Limits | None = None) -> None:
        """Open `url` and bring its tables up to date. Raises StoreError where that cannot be done.

        A password may be in the environment instead of the URL, which others may read: $RHUMBLINE_USERS_PASSWORD.
        """
        self.limits = limits or Limits()
        self._engine = _engine(url)
        try:
            try:
                self._migrate()
            except (IntegrityError, ProgrammingError):  # another server made the tables first, where DDL takes no lock
                self._migrate()
        except (DatabaseError, OSError) as e:
            self.close()
            raise StoreError(f"{_shown(url)} cannot be opened for profiles and quizzes: {_reason(e)}") from e
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Give every connection back."""
        self._engine.dispose()

    def __enter__(self) -> People:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- quizzes ------------------------------------------------------------------------------------------------------

    def save_quiz(self, owner: str, quiz_id: str, state: Mapping[str, Any], *, version: int | None = None) -> int:
        """Keep a quiz; its new version. Without `version` it must be new, and the owner's stalest one makes room for it.

        Raises PeopleError: conflict where the quiz is not at `version` any more (or there already), unknown_quiz, too_large.
        """
        text = json.dumps(dict(state), ensure_ascii=False, allow_nan=False)
        if len(text.encode("utf-8", "surrogatepass")) > self.limits.state_bytes:
            raise PeopleError(f"quiz {quiz_id!r} is larger than {self.limits.state_bytes:,} bytes", "too_large")
        where = (_quizzes.c.owner == owner) & (_quizzes.c.id == quiz_id)
        with self._writing() as connection:
            if version is None:
                self._make_room(connection, owner)
                row = {"owner": owner, "id": quiz_id, "version": 1, "touched": time.time(), "state": text}
                try:
                    connection.execute(_quizzes.insert().values(row))
                except IntegrityError:
                    raise PeopleError(f"quiz {quiz_id!r} is there already", "conflict") from None
                return 1
            changed = connection.execute(
                _quizzes.update()
                .where(where & (_quizzes.c.version == version))
                .values(version=version + 1, touched=time.time(), state=text)
            )
            if changed.rowcount == 1:
                return version + 1
            if connection.execute(sa.select(_quizzes.c.id).where(where)).first() is None:
                raise _no_quiz(quiz_id)
            raise PeopleError(f"quiz {quiz_id!r} has changed since it was read: read it again", "conflict")

    def load_quiz(self, owner: str, quiz_id: str) -> tuple[State, int]:
        """A quiz's state and version. Raises PeopleError (unknown_quiz), for somebody else's quiz too."""
        query = sa.select(_quizzes.c.state, _quizzes.c.version)
        with self._reading() as connection:
            row = connection.execute(query.where((_quizzes.c.owner == owner) & (_quizzes.c.id == quiz_id))).first()
        if row is None:
            raise _no_quiz(quiz_id)
        return json.loads(row.state), int(row.version)

    def change_quiz(self, owner: str, quiz_id: str, change: Callable[[State], State]) -> State:
        """Put `change(state)` in the place of a quiz's state; the new state.

        `change` runs outside any transaction, and again on the newer state where a rival was faster: what it raises then
        (QuizError: answered) reaches the caller, and nothing is saved. Raises PeopleError: unknown_quiz, conflict.
        """
        for _ in range(TRIES):
            state, version = self.load_quiz(owner, quiz_id)
            new = change(state)
            try:
                self.save_quiz(owner, quiz_id, new, version=version)
            except PeopleError as e:
                if e.code != "conflict":
                    raise
            else:
                return new
        raise PeopleError(f"quiz {quiz_id!r} keeps changing: {TRIES} tries lost to other requests", "conflict")

    # --- profiles -----------------------------------------------------------------------------------------------------

    def save_profile(
        self,
        owner: str,
        name: str,
        weights: Mapping[str, float],
        *,
        source: Source = "hand",
        half_angle_deg: float | None = None,
    ) -> Profile:
        """Keep a direction under `name`, in the place of one that has it. Whether a model knows the objectives, it says itself.

        Raises PeopleError: invalid_name, invalid_profile, too_many.
        """
        _check_name(name)
        profile = Profile(
            name=name,
            weights=self._checked(name, weights),
            source=source,
            half_angle_deg=half_angle_deg,
            updated=time.time(),
        )
        row = {**profile.to_dict(), "weights": json.dumps(profile.weights)}
        with self._writing() as connection:
            where = (_profiles.c.owner == owner) & (_profiles.c.name == name)
            if connection.execute(_profiles.update().where(where).values(row)).rowcount == 0:
                count = sa.select(sa.func.count()).where(_profiles.c.owner == owner)
                if connection.execute(count).scalar_one() >= self.limits.profiles:
                    raise PeopleError(
                        f"this key has {self.limits.profiles} profiles, as many as it may keep: delete one first",
                        "too_many",
                    )
                try:
                    connection.execute(_profiles.insert().values({**row, "owner": owner}))
                except IntegrityError:
                    raise PeopleError(f"profile {name!r} was saved by another request: try again", "conflict") from None
        return profile

    def get_profile(self, owner: str, name: str) -> Profile:
        """Raises PeopleError (unknown_profile) with a did-you-mean, for somebody else's profile too."""
        known = {profile.name: profile for profile in self.profiles(owner)}
        if name not in known:
            raise PeopleError(f"unknown profile {name!r}.{did_you_mean(name, known)}", "unknown_profile")
        return known[name]

    def profiles(self, owner: str) -> list[Profile]:
        """All profiles of an owner, by name."""
        query = sa.select(_profiles).where(_profiles.c.owner == owner).order_by(_profiles.c.name)
        with self._reading() as connection:
            return [_profile(row) for row in connection.execute(query)]

    def delete_profile(self, owner: str, name: str) -> None:
        """Forget a profile, and the binding to it. Raises PeopleError (unknown_profile)."""
        with self._writing() as connection:
            mine = (_profiles.c.owner == owner) & (_profiles.c.name == name)
            if connection.execute(_profiles.delete().where(mine)).rowcount == 0:
                raise PeopleError(f"unknown profile {name!r}", "unknown_profile")
            connection.execute(_bindings.delete().where((_bindings.c.owner == owner) & (_bindings.c.name == name)))

    # --- bindings -----------------------------------------------------------------------------------------------------

    def bind(self, owner: str, name: str) -> Profile:
        """From now on the owner's requests without a direction go in this profile's. Raises PeopleError (unknown_profile)."""
        profile = self.get_profile(owner, name)
        with self._writing() as connection:
            if connection.execute(_bindings.update().where(_bindings.c.owner == owner).values(name=name)).rowcount == 0:
                try:
                    connection.execute(_bindings.insert().values(owner=owner, name=name))
                except IntegrityError:
                    raise PeopleError("this key was bound by another request: try again", "conflict") from None
        return profile

    def unbind(self, owner: str) -> None:
        """The owner's requests go in the server's default direction again. Nothing happens where nothing was bound."""
        with self._writing() as connection:
            connection.execute(_bindings.delete().where(_bindings.c.owner == owner))

    def bound(self, owner: str) -> Profile | None:
        """The profile that an owner's requests go by; None where none is bound."""
        join = (_bindings.c.owner == _profiles.c.owner) & (_bindings.c.name == _profiles.c.name)
        with self._reading() as connection:
            row = connection.execute(sa.select(_profiles).where((_bindings.c.owner == owner) & join)).first()
        return None if row is None else _profile(row)

    # --- inside -------------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _writing(self) -> Iterator[sa.Connection]:
        """One writer at a time, as in SQLite: what is counted first must still hold when it is written."""
        with self._beginning() as connection:
            connection.execute(sa.select(_version).order_by(_version.c.version).with_for_update()).all()
            yield connection

    def _beginning(self) -> Any:
        return self._engine.execution_options(writes=True).begin()

    def _reading(self) -> Any:
        return self._engine.begin()

    def _make_room(self, connection: sa.Connection, owner: str) -> None:
        mine = sa.select(_quizzes.c.id).where(_quizzes.c.owner == owner).order_by(_quizzes.c.touched.desc())
        ids = [row.id for row in connection.execute(mine)]
        for stale in ids[max(0, self.limits.quizzes - 1) :]:
            connection.execute(_quizzes.delete().where((_quizzes.c.owner == owner) & (_quizzes.c.id == stale)))

    def _checked(self, name: str, weights: Mapping[str, float]) -> dict[str, float]:
        if not 1 <= len(weights) <= self.limits.objectives:
            raise PeopleError(
                f"profile {name!r} names {len(weights)} objectives, expected 1 to {self.limits.objectives}",
                "invalid_profile",
            )
        for objective, weight in weights.items():
            number = isinstance(weight, int | float) and not isinstance(weight, bool) and math.isfinite(weight)
            if not number or not 0 < len(objective) <= 128:
                raise PeopleError(
                    f"profile {name!r}: weight of {objective[:128]!r} must be a finite number, got {weight!r}",
                    "invalid_profile",
                )
        if not any(weights.values()):
            raise PeopleError(f"profile {name!r}: all weights are zero", "invalid_profile")
        return {objective: float(weight) for objective, weight in weights.items()}

    def _migrate(self) -> None:
        with self._beginning() as connection:
            _version.create(connection, checkfirst=True)
            at = connection.execute(sa.select(sa.func.max(_version.c.version))).scalar() or 0
            if at > len(MIGRATIONS):
                raise StoreError(
                    f"{_shown(self._engine.url)} was written by a newer Rhumbline (tables {at}, this one knows "
                    f"{len(MIGRATIONS)}): use that one, or another database"
                )
            for number, step in enumerate(MIGRATIONS[at:], start=at + 1):
                step(connection)
                connection.execute(_version.insert().values(version=number))


def _engine(url: str) -> sa.Engine:
    try:
        parsed = _with_password(sa.make_url(url))
        sqlite = parsed.get_backend_name() == "sqlite"
        if sqlite and parsed.database in (None, "", ":memory:"):
            raise StoreError(f"{url!r} lives in memory, and profiles must survive a restart: give sqlite:///FILE")
        if sqlite:
            file = Path(str(parsed.database)).absolute()
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # What people prefer is theirs: SQLite would make the file as readable as the umask says, and its log like the file.
            file.touch(mode=0o600)
            engine = sa.create_engine(parsed, connect_args={"timeout": BUSY_S})
        else:
            engine = sa.create_engine(parsed, pool_pre_ping=True)
    except (ArgumentError, NoSuchModuleError, ImportError) as e:
        raise StoreError(
            f"{url!r} is no database URL that can be used here: {_reason(e)}. Expected sqlite:///FILE, or a URL whose driver "
            "is installed, such as postgresql+psycopg://USER@HOST/NAME"
        ) from e
    except OSError as e:
        raise StoreError(f"the folder of {url!r} cannot be made: {e.strerror or e}") from e
    if sqlite:
        sa.event.listen(engine, "connect", _prepare_sqlite)
        sa.event.listen(engine, "begin", _begin_sqlite)
    return engine


def _with_password(url: sa.URL) -> sa.URL:
    password = os.environ.get(PASSWORD)
    return url.set(password=password) if password and url.username and url.password is None else url


def _prepare_sqlite(connection: Any, _: object) -> None:
    connection.isolation_level = None  # sqlite3 begins no transaction of its own: `_begin_sqlite` does
    deadline = time.monotonic() + BUSY_S
    for pragma in (f"busy_timeout={int(BUSY_S * 1000)}", "journal_mode=WAL", "synchronous=NORMAL"):
        while True:
            try:
                connection.execute(f"PRAGMA {pragma}").close()
                break
            except sqlite3.OperationalError as e:
                # Of two that turn a new file to WAL at once SQLite refuses one without waiting: each holds what the other needs.
                if e.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.01)


def _begin_sqlite(connection: sa.Connection) -> None:
    # A transaction that reads first and writes later cannot wait for a rival writer, it fails at once: take the lock first.
    writes = connection.get_execution_options().get("writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _profile(row: Any) -> Profile:
    return Profile(
        name=row.name,
        weights=json.loads(row.weights),
        source=row.source,
        half_angle_deg=row.half_angle_deg,
        updated=row.updated,
    )


def _no_quiz(quiz_id: str) -> PeopleError:
    return PeopleError(
        f"unknown quiz {quiz_id[:64]!r}: it may have made room for newer ones; start another", "unknown_quiz"
    )


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise PeopleError(
            f"profile name {name[:80]!r}: expected 1 to 64 letters, digits, dots, dashes and underscores",
            "invalid_name",
        )


def _shown(url: str | sa.URL) -> str:
    return sa.make_url(url).render_as_string(hide_password=True)


def _reason(error: Exception) -> str:
    return str(getattr(error, "orig", None) or error).splitlines()[0]
