"""`python -m zoo`: see zoo.check."""

from __future__ import annotations

import sys

from zoo.check import main

sys.exit(main())
