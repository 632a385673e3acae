"""The command line. Nothing heavy is imported before a command runs."""

from __future__ import annotations

from paretoprune.cli.app import app, main

__all__ = ["app", "main"]
