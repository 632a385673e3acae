"""Outputs with named fields, as a loaded graph gives them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch.utils import _pytree as pytree


class Record(dict[str, Any]):
    """A dict whose entries are attributes too, and which a number or a slice reads in order."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"there is no output {name!r}; there are {', '.join(self)}")

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(key) if isinstance(key, str) else tuple(self.values())[key]


def _made(values: Iterable[Any], context: list[str]) -> Record:
    return Record(zip(context, values, strict=True))


pytree.register_pytree_node(Record, lambda record: (list(record.values()), list(record)), _made)
