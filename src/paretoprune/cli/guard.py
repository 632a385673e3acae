"""Errors as one line, libraries that keep quiet, and Ctrl-C."""

from __future__ import annotations

import _thread
import errno
import logging
import os
import signal
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import typer

from paretoprune.core.errors import PruneError

INTERRUPTED = 130
LONGEST = 2000


@dataclass(frozen=True)
class Flags:
    """The options of the program itself."""

    debug: bool = False
    quiet: bool = False

    def note(self, text: str) -> None:
        """A line on standard error, unless quiet."""
        if not self.quiet:
            say(text)


def say(text: str) -> None:
    """One line on standard error; what a terminal would obey is spelled out."""
    from paretoprune.report.text import clean

    typer.echo(clean(" ".join(text.split()), LONGEST), err=True)


def complain(text: str) -> None:
    say(f"error: {text}")


@contextmanager
def one_line_errors(debug: bool) -> Iterator[None]:
    """Every error of a command becomes one line and an exit status; the traceback is shown with `debug`."""
    if not debug:
        quieten()
    try:
        yield
    except (typer.Exit, typer.Abort, typer.BadParameter):
        raise
    except KeyboardInterrupt as error:
        complain("stopped by Ctrl-C")
        raise typer.Exit(INTERRUPTED) from error
    except PruneError as error:
        _show_traceback(debug)
        complain(str(error))
        raise typer.Exit(error.exit_status) from error
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.EPIPE:  # the reader of our output has left
            raise
        _show_traceback(debug)
        hint = "" if debug else "; --debug shows where"
        complain(f"unexpected {type(error).__name__}: {error}{hint}")
        raise typer.Exit(PruneError.exit_status) from error


def _show_traceback(debug: bool) -> None:
    if debug:
        from paretoprune.report.text import clean_lines

        typer.echo(clean_lines(traceback.format_exc()), err=True)


def quieten() -> None:
    """Warnings and log lines of libraries are for developers; what a user must know is in our own notes."""
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)


SWALLOWED_S = 10.0
"""A KeyboardInterrupt that nobody caught for so long fell where Python drops exceptions, as in a destructor."""


class Interrupts:
    """Ctrl-C while a search runs."""

    def __init__(self) -> None:
        self._raised: float | None = None

    def taken(self) -> None:
        """Whoever catches a KeyboardInterrupt says so; else it is raised again."""
        self._raised = None

    def _handle(self, number: int, frame: object) -> None:
        self._raised = time.monotonic()
        raise KeyboardInterrupt

    def _watch(self, signals: socket.socket) -> None:
        seen = 0
        signals.settimeout(SWALLOWED_S / 10)
        with signals:
            while True:
                try:
                    numbers = signals.recv(16)
                except TimeoutError:
                    if self._raised is not None and time.monotonic() - self._raised > SWALLOWED_S:
                        self._raised = None
                        seen -= 1  # it is told of like one of the user's
                        _interrupt()
                    continue
                if not numbers:
                    return
                seen += numbers.count(signal.SIGINT)
                if seen > 1:
                    os._exit(INTERRUPTED)


def _interrupt() -> None:
    """A real signal where there are such, which also ends a wait."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()


@contextmanager
def second_interrupt_leaves() -> Iterator[Interrupts]:
    """The first Ctrl-C raises KeyboardInterrupt; the second ends the process at once, whatever it does.

    A thread watches, so that this also holds while the main thread is inside a library. Nothing is lost: the journal
    survives even kill -9.
    """
    found = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    read, write = socket.socketpair()
    write.setblocking(False)
    before = signal.signal(signal.SIGINT, found._handle)
    wakeup = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=found._watch, args=(read,), daemon=True).start()
    try:
        yield found
    finally:
        signal.set_wakeup_fd(wakeup)
        signal.signal(signal.SIGINT, before)
        write.close()
