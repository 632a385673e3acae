"""Nested states of training as JSON and tensors, and back: exact, and nothing in them is ever executed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from paretoprune.core.errors import UsageError


def pack(value: Any, tensors: dict[str, Tensor], path: str = "state") -> Any:
    """`value` as JSON; its tensors go into `tensors` under their paths.

    Takes tensors, numbers, strings, None, and mappings, lists and tuples of them. Raises UsageError for anything else.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        name = f"{len(tensors)}:{path}"  # a number first: "a.b" may be one key or two
        tensors[name] = value.detach()
        return {"tensor": name}
    if isinstance(value, Mapping):
        kind = "counter" if isinstance(value, Counter) else "dict"
        items = [[_key(k, path), pack(v, tensors, f"{path}.{k}")] for k, v in value.items()]
        return {kind: items}
    if isinstance(value, (list, tuple)):
        kind = "tuple" if isinstance(value, tuple) else "list"
        return {kind: [pack(v, tensors, f"{path}.{i}") for i, v in enumerate(value)]}
    raise UsageError(
        f"{path} is a {type(value).__module__}.{type(value).__name__}, which a checkpoint cannot hold without pickle: "
        "keep tensors, numbers and strings in the state"
    )


def unpack(packed: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` was given. Raises KeyError, TypeError or ValueError for anything else."""
    if not isinstance(packed, dict):
        return packed
    ((kind, content),) = packed.items()
    if kind == "tensor":
        return tensors[content]
    if kind in ("dict", "counter"):
        items = {k: unpack(v, tensors) for k, v in content}
        return Counter(items) if kind == "counter" else items
    values = [unpack(v, tensors) for v in content]
    return {"list": list, "tuple": tuple}[kind](values)


def _key(key: Any, path: str) -> Any:
    if isinstance(key, (bool, int, float, str)):
        return key
    raise UsageError(f"{path} has the key {key!r}: a checkpoint holds keys that are numbers or strings")
