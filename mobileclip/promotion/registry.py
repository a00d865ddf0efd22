"""A model registry seen as plain data: versions with tags, and aliases; the few operations that promotion needs."""

import logging
import random
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from mobileclip.errors import DataError
from mobileclip.tracking import runs as tracking

logger = logging.getLogger(__name__)

CHAMPION = "champion"
CHALLENGER = "challenger"
_ATTEMPTS = 6
_T = TypeVar("_T")
# What a busy store answers; asking again is right.
_BUSY = frozenset({"INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE", "REQUEST_LIMIT_EXCEEDED", "RESOURCE_CONFLICT", ""})
# Two writers that set the same new tag at once: the store looks, finds none, and its database refuses the second row.
_CROSSED = ("IntegrityError", "UniqueViolation")
# What callers ask about: these are answers, not failures.
_ANSWERS = frozenset({"RESOURCE_ALREADY_EXISTS", "RESOURCE_DOES_NOT_EXIST"})
# Nobody listens; MLflow has asked again itself by the time it says so.
_UNREACHABLE = ("NewConnectionError", "NameResolutionError", "Failed to establish")


@dataclass(frozen=True)
class Version:
    """One registered version."""

    number: int
    source: str
    run_id: str
    tags: dict[str, str]


@dataclass(frozen=True)
class Registry:
    """One registered model."""

    client: Any
    name: str

    def ensure(self, description: str = "") -> None:
        """Create the registered model unless it is there."""
        try:
            _patiently(lambda: self.client.create_registered_model(self.name, description=description))
        except Exception as error:
            if _code(error) != "RESOURCE_ALREADY_EXISTS":
                raise

    def create(self, source: str, tags: Mapping[str, str], *, run_id: str = "", model_id: str = "") -> int:
        """Add a version with its tags, in one transaction of the store; returns the number the store gave it."""

        def create() -> Any:
            return self.client.create_model_version(
                self.name, source, run_id or None, dict(tags), model_id=model_id or None, await_creation_for=0
            )

        return int(_patiently(create).version)

    def versions(self) -> list[Version]:
        """All versions in the order of their numbers; empty where the model is not registered."""
        found: list[Version] = []
        token = None
        while True:
            wanted = f"name = '{self.name}'"
            page = _patiently(lambda: self.client.search_model_versions(wanted, page_token=token))  # noqa: B023
            found += [_version(item) for item in page]
            token = page.token
            if not token:
                return sorted(found, key=lambda version: version.number)

    def version(self, reference: int | str) -> Version:
        """A version by number or alias.

        Raises:
            DataError: There is none.
        """
        text = str(reference)
        number = int(text) if text.isdigit() else self.alias(text)
        versions = self.versions()
        for version in versions:
            if version.number == number:
                return version
        numbers = [version.number for version in versions]
        known = [str(number) for number in numbers] + sorted(self.aliases())
        want = f", want one of {', '.join(known)}" if known else " and no other, want the name of a registered student"
        raise DataError(f"registry: '{self.name}' has no version '{reference}'{want}.")

    def aliases(self) -> dict[str, int]:
        """Version number by alias; empty where the model is not registered."""
        try:
            model = _patiently(lambda: self.client.get_registered_model(self.name))
        except Exception as error:
            if _code(error) != "RESOURCE_DOES_NOT_EXIST":
                raise
            return {}
        return {str(k): int(v) for k, v in dict(model.aliases).items()}  # int in SQLite, str over REST

    def alias(self, alias: str) -> int:
        """The version an alias points at; 0 where it points at none."""
        return self.aliases().get(alias, 0)

    def point(self, alias: str, number: int) -> None:
        """Point an alias at a version; at none where the number is 0."""
        if number:
            _patiently(lambda: self.client.set_registered_model_alias(self.name, alias, str(number)))
        else:
            _patiently(lambda: self.client.delete_registered_model_alias(self.name, alias))

    def tag(self, number: int, tags: Mapping[str, str]) -> None:
        """Set tags of a version."""
        for key, value in tags.items():
            _patiently(lambda: self.client.set_model_version_tag(self.name, str(number), key, value))  # noqa: B023

    def tag_model(self, tags: Mapping[str, str]) -> None:
        """Set tags of the registered model."""
        for key, value in tags.items():
            _patiently(lambda: self.client.set_registered_model_tag(self.name, key, value))  # noqa: B023


def having(tags: Collection[str]) -> list[tuple[Registry, Version]]:
    """The versions of any registered model that have one of these tags, whatever its value; the newest first.

    Raises:
        ConfigError: MLflow is missing or its store does not answer.
    """
    client = tracking.connect(optional=False)
    found: list[Any] = []
    with tracking.one_sentence(optional=False):
        token = None
        while True:
            page = _patiently(lambda: client.search_model_versions("", page_token=token))  # noqa: B023
            found += [item for item in page if set(tags) & set(item.tags)]
            token = page.token
            if not token:
                break
    found.sort(key=lambda item: (item.creation_timestamp, int(item.version)), reverse=True)
    return [(Registry(client, str(item.name)), _version(item)) for item in found]


def connect(name: str) -> Registry:
    """The registry of the configured tracking store.

    Raises:
        ConfigError: MLflow is missing or its store does not answer.
    """
    return Registry(tracking.connect(optional=False), name)


def _version(item: Any) -> Version:
    return Version(int(item.version), str(item.source), str(item.run_id or ""), dict(item.tags))


def _patiently(action: Callable[[], _T]) -> _T:
    """Do it, again while the store is busy: SQLite locks, and two writers that wanted the same version number.

    Raises:
        ConfigError: The store is out of reach, forbids it, or stays busy.
    """
    for attempt in range(_ATTEMPTS):
        try:
            return action()
        except Exception as error:
            if _code(error) in _ANSWERS:
                raise
            if attempt == _ATTEMPTS - 1 or not _passes(error):
                with tracking.one_sentence(optional=False):
                    raise
            logger.debug("registry: busy, attempt %d", attempt + 1)
            time.sleep(0.1 * 2**attempt * (1 + random.random()))
    raise AssertionError("unreachable")


def _passes(error: Exception) -> bool:
    """Whether the same request may succeed a moment later."""
    if any(name in str(error) for name in _UNREACHABLE):
        return False
    return _code(error) in _BUSY or any(name in str(error) for name in _CROSSED)


def _code(error: Exception) -> str:
    return str(getattr(error, "error_code", ""))
