"""Hashes of cache keys, worked out once an object: a small solve looks up several."""

from __future__ import annotations

from typing import Any, TypeVar

T = TypeVar("T")

_NAME = "_hash_once"


def hash_once(cls: type[T]) -> type[T]:
    """``cls``, a frozen dataclass without slots, whose objects remember their hash."""
    work_out = cls.__hash__

    def __hash__(self: T) -> int:
        known: int | None = self.__dict__.get(_NAME)
        if known is None:
            known = self.__dict__[_NAME] = work_out(self)
        return known

    def __getstate__(self: T) -> dict[str, Any]:
        # Hashes of strings are another process's own.
        return {name: value for name, value in self.__dict__.items() if name != _NAME}

    cls.__hash__ = __hash__  # type: ignore[method-assign, assignment]
    cls.__getstate__ = __getstate__  # type: ignore[attr-defined]
    return cls
