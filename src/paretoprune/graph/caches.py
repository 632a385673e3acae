"""Key-value caches of language models: no part of a graph."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn


@contextmanager
def without_cache(model: nn.Module) -> Iterator[bool]:
    """Configs of transformers models say `use_cache=False` inside the block; gives whether one said otherwise."""
    configs = _caching(model)
    for config in configs:
        config.use_cache = False
    try:
        yield bool(configs)
    finally:
        for config in configs:
            config.use_cache = True


def _caching(model: nn.Module) -> list[Any]:
    library = sys.modules.get("transformers.configuration_utils")  # the package itself would import it, or fail to
    base = None if library is None else getattr(library, "PretrainedConfig", None)
    if base is None:
        return []
    held = {id(c): c for m in model.modules() if isinstance(c := getattr(m, "config", None), base)}
    for config in list(held.values()):
        held |= {id(c): c for c in vars(config).values() if isinstance(c, base)}
    return [c for c in held.values() if getattr(c, "use_cache", None) is True]
