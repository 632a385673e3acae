"""Errors as one line, libraries that keep quiet, and Ctrl-C."""

from __future__ import annotations

import errno
import logging
import os
import signal
import socket
import threading
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


@contextmanager
def second_interrupt_leaves() -> Iterator[None]:
    """The first Ctrl-C raises KeyboardInterrupt as usual; the second ends the process at once, whatever it does.

    A thread watches, so that this also holds while the main thread is inside a library. Nothing is lost: the journal
    survives even kill -9.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    read, write = socket.socketpair()
    write.setblocking(False)
    before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(read,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        write.close()


def _watch(signals: socket.socket) -> None:
    seen = 0
    with signals:
        while numbers := signals.recv(16):
            seen += numbers.count(signal.SIGINT)
            if seen > 1:
                os._exit(INTERRUPTED)
