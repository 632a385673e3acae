"""The config of a transformers model that gives the shapes of a pruned one, or why there is none."""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from paretoprune.core.errors import ModelError

MAX_BUILDS = 160
"""Configs that are tried; each builds the network without values."""
_NEVER = re.compile(
    r"(^|_)(token|id|ids|layers?|depths?|max|min|position|positions|vocab|labels|kernel|stride|patch|image|window|"
    r"buckets|distance|length|seed|beams?|version|channels_in|num_channels|type)(_|$)"
)
"""Words in names of fields that are no width of the network."""
_SIZE = re.compile(r"(^|_)(inner|dim|size|width|hidden|ffn|ff|intermediate|d)(_|$)")
"""Words in names of fields that may be one."""

Shapes = Mapping[str, tuple[int, ...]]
Place = tuple[tuple[str, ...], int | None]
"""Names of the configs within the config, then of the field; the place in a list."""


def fitting_config(model: Any) -> Any:
    """A copy of the model's config, edited until its class has just the model's shapes. Raises ModelError.

    The shapes decide which field means what: no field's meaning is assumed from its name.
    """
    search = _Search(type(model), model.config, _shapes(model), _unsaid(model))
    config = search.run()
    if config is None:
        raise ModelError(f"{search.why()}; use paretoprune.save, which writes any result")
    return config


@dataclass(frozen=True)
class _Tried:
    config: Any
    shapes: Shapes
    wrong: int


class _Search:
    def __init__(self, kind: type[nn.Module], config: Any, wanted: Shapes, unsaid: Mapping[str, int]):
        self._kind, self._wanted, self._unsaid = kind, wanted, unsaid
        self._builds = 0
        self._moved: dict[str, set[str]] = defaultdict(set)
        """Tensor -> fields whose change was seen to change its shape."""
        first = self._try(config, ())
        if first is None:
            first = _Tried(config, {}, len(wanted))
        self._best = first

    def run(self) -> Any | None:
        """Field by field, the one that sets most shapes right; where none does alone, two together."""
        while self._best.wrong:
            better = self._step(1) or self._step(2)
            if better is None:
                return None
            self._best = better
        return self._best.config

    def _step(self, fields: int) -> _Tried | None:
        options: list[tuple[Place, int]] = [(((n,), None), v) for n, v in self._unsaid.items()]
        options += [(place, want) for place in _empty(self._best.config) for _, want in self._pairs()]
        options += [(place, value) for place in _places(self._best.config) for value in self._values(place)]
        best: _Tried | None = None
        for chosen in combinations(options, fields):
            if self._builds >= MAX_BUILDS or len({place for place, _ in chosen}) < fields:
                continue
            tried = self._try(self._best.config, chosen, chosen[0][0] if fields == 1 else None)
            if tried is not None and tried.wrong < (best or self._best).wrong:
                best = tried
                if not tried.wrong:
                    break
        return best

    def _try(self, start: Any, chosen: tuple[tuple[Place, int], ...], changed: Place | None = None) -> _Tried | None:
        self._builds += 1
        try:
            config = _edited(start, chosen)
            with torch.device("meta"):
                shapes = _shapes(self._kind(config))
        except Exception:  # noqa: BLE001 - sizes that do not go together; configs check them with errors of their own
            return None
        if changed is not None:
            for name, shape in shapes.items():
                if self._best.shapes.get(name) != shape:
                    self._moved[name].add(".".join(changed[0]))
        names = set(shapes) | set(self._wanted)
        return _Tried(config, shapes, sum(shapes.get(n) != self._wanted.get(n) for n in names))

    def _values(self, place: Place) -> list[int]:
        """What a field may become: scaled as some wrong dimension has to be, or that dimension itself."""
        old = _read(self._best.config, place)
        found: dict[int, None] = {}
        for have, want in self._pairs():
            if have == old:
                found[want] = None
            if old * want % have == 0 and 0 < old * want // have < old:
                found[old * want // have] = None
        return list(found)

    def _pairs(self) -> list[tuple[int, int]]:
        pairs: dict[tuple[int, int], None] = {}
        for name, want in self._wanted.items():
            have = self._best.shapes.get(name)
            if have is not None and len(have) == len(want):
                pairs.update(dict.fromkeys((h, w) for h, w in zip(have, want, strict=True) if h != w))
        return list(pairs)[:12]

    def why(self) -> str:
        """Which tensor no field gives its shape, and whether that is for layers that differ."""
        name = type(self._best.config).__name__
        wrong = [n for n, want in self._wanted.items() if self._best.shapes.get(n) != want]
        wrong += [n for n in self._best.shapes if n not in self._wanted]
        first = wrong[0]
        have, want = self._best.shapes.get(first), self._wanted.get(first)
        if have is None or want is None:
            return f"{name} cannot express the result: '{first}' is in only one of the two networks"
        fields = " and ".join(f"'{f}'" for f in sorted(self._moved.get(first, ())))
        several = self._layers_differ(first)
        if several:
            said = f"{name} has one size for all layers" + (f" ({fields})" if fields else "")
            return f"{name} cannot express the result: '{first}' has shape {want} and {several}, but {said}"
        change = "change" if " and " in fields else "changes"
        only = f"only {fields} {change} it, and other tensors with it" if fields else "no field changes it alone"
        return f"{name} cannot express the result: '{first}' has shape {want}, the config gives {have}, and {only}"

    def _layers_differ(self, name: str) -> str:
        """The same tensor of another layer, with another shape."""
        pattern = re.sub(r"\.\d+\.", ".#.", name)
        for other, shape in self._wanted.items():
            same = re.sub(r"\.\d+\.", ".#.", other) == pattern and len(shape) == len(self._wanted[name])
            if same and shape != self._wanted[name] and self._best.shapes.get(other) == self._best.shapes.get(name):
                return f"'{other}' has {shape}"
        return ""


def _unsaid(model: Any) -> dict[str, int]:
    """Fields that a config may leave out and that its classes then derive: the size of a head."""
    found = {m.head_dim for m in model.modules() if type(getattr(m, "head_dim", None)) is int}
    return {"head_dim": found.pop()} if len(found) == 1 and getattr(model.config, "head_dim", None) is None else {}


def _shapes(model: nn.Module) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _places(config: Any, above: tuple[str, ...] = (), depth: int = 0) -> Iterator[Place]:
    """Every integer field, those of configs within the config too."""
    for name, value in list(vars(config).items()):
        if name.startswith("_") or _NEVER.search(name):
            continue
        if type(value) is int and value > 1:
            yield (*above, name), None
        elif isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
            yield from (((*above, name), i) for i in range(len(value)))
        elif hasattr(value, "to_dict") and depth < 3:
            yield from _places(value, (*above, name), depth + 1)


def _empty(config: Any) -> Iterator[Place]:
    """Fields that hold nothing, for which the class then takes a multiple of another: GPT-2's n_inner."""
    for name, value in list(vars(config).items()):
        if value is None and _SIZE.search(name) and not name.startswith("_") and not _NEVER.search(name):
            yield (name,), None


def _read(config: Any, place: Place) -> int:
    path, at = place
    for name in path:
        config = getattr(config, name)
    value: int = config if at is None else config[at]
    return value


def _edited(config: Any, chosen: tuple[tuple[Place, int], ...]) -> Any:
    new = copy.deepcopy(config)
    for (path, at), value in chosen:
        owner = new
        for name in path[:-1]:
            owner = getattr(owner, name)
        if at is not None:
            old = getattr(owner, path[-1])
            setattr(owner, path[-1], type(old)([*old[:at], value, *old[at + 1 :]]))
        else:
            setattr(owner, path[-1], value)
    return new
