"""Imported by the process from which every network's own is forked."""

from __future__ import annotations

from zoo.child import warm_up

warm_up()
