"""`python -m paretoprune`."""

from __future__ import annotations

from paretoprune.cli import main

if __name__ == "__main__":
    main()
