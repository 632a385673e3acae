"""How long work tells how far it is. The rooms see this protocol; a display stands behind it, or nothing."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Protocol


class Stage(Protocol):
    """One named piece of work."""

    def advance(self, n: int = 1, note: str = "") -> None:
        """`n` more steps are done; `note` is a few words on the latest one (untrusted text is welcome)."""
        ...


class Progress(Protocol):
    """Stages may be nested and may run in turn."""

    def stage(self, name: str, total: int | None) -> AbstractContextManager[Stage]:
        """Open a stage of `total` steps, or None where their number is not known. It ends with the `with` block."""
        ...


class NoStage:
    """A stage that nobody watches."""

    def advance(self, n: int = 1, note: str = "") -> None:
        return None


class NoProgress:
    """Progress that nobody watches; the default of every call that takes a `Progress`."""

    def stage(self, name: str, total: int | None) -> AbstractContextManager[Stage]:
        return nullcontext(NoStage())
