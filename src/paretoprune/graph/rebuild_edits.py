"""New values of a network's integer attributes, as plain data: with them a fresh network is the pruned one."""

from __future__ import annotations

import copy
import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from paretoprune.core.errors import FileError
from paretoprune.graph.narrow import narrowed
from paretoprune.graph.rebuild_layers import refresh
from paretoprune.graph.rebuild_slots import Slot, fields_of

Value = int | tuple[int, ...]


@dataclass(frozen=True, order=True)
class Edit:
    """Set attribute `name` of the module at `path`, or `field` of the settings object that `name` holds, to `value`."""

    path: str
    name: str
    field: str
    value: Value

    def to_json(self) -> list[Any]:
        return [self.path, self.name, self.field, list(self.value) if isinstance(self.value, tuple) else self.value]

    @classmethod
    def from_json(cls, data: Any) -> Edit:
        """Raises FileError: the values are integers and the names are no private machinery."""
        path, name, field, value = data
        value = tuple(value) if isinstance(value, list) else value
        sound = all(type(v) in (int, bool) for v in (value if isinstance(value, tuple) else (value,)))
        if not sound or not all(isinstance(s, str) and "__" not in s for s in (path, name, field)) or not name:
            raise FileError(f"the edit {str(data)[:80]} does not set an integer attribute")
        return cls(path, name, field, value)


@dataclass(frozen=True)
class Edits:
    """`narrow`: attention layers whose heads no longer fill the embedding, with heads, head size and scale.

    `passed`: layers that `nn.Identity` stands for, since nothing is left of them. `thin`: layers that two stand for.
    `activations`: modules of an activation, each with the name of the one that takes its place.
    """

    values: tuple[Edit, ...] = ()
    narrow: tuple[tuple[str, int, int, float], ...] = ()
    passed: tuple[str, ...] = ()
    thin: tuple[str, ...] = ()
    activations: tuple[tuple[str, str], ...] = ()

    def to_json(self) -> dict[str, Any]:
        layers = {
            "passed": list(self.passed),
            "thin": list(self.thin),
            "activations": [list(a) for a in self.activations],
        }
        return {"values": [e.to_json() for e in self.values], "narrow": [list(n) for n in self.narrow]} | {
            k: v for k, v in layers.items() if v
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Edits:
        """Raises FileError, KeyError, TypeError or ValueError for anything malformed."""
        narrow = []
        for path, heads, size, scale in data["narrow"]:
            if not isinstance(path, str) or type(heads) is not int or type(size) is not int or heads < 1 or size < 1:
                raise FileError(f"{path!r} is no attention layer with {heads!r} heads of {size!r}")
            narrow.append((path, heads, size, float(scale)))
        passed, thin = (data.get(k, []) for k in ("passed", "thin"))
        for layers in (passed, thin):
            if not isinstance(layers, list) or not all(isinstance(p, str) for p in layers):
                raise FileError(f"{str(layers)[:80]} is no list of layers")
        swaps = tuple((path, name) for path, name in data.get("activations", []))
        if not all(isinstance(text, str) for swap in swaps for text in swap):
            raise FileError(f"{str(swaps)[:80]} are no modules with the activations in their place")
        values = tuple(Edit.from_json(e) for e in data["values"])
        return cls(values, tuple(narrow), tuple(passed), tuple(thin), swaps)


def edits_of(model: nn.Module, slots: Iterable[Slot], values: Iterable[int]) -> list[Edit]:
    """What these choices change; the integers of one list or tuple are set together."""
    modules = dict(model.named_modules())
    parts: dict[tuple[str, str, str], dict[int | None, int]] = defaultdict(dict)
    for slot, value in zip(slots, values, strict=True):
        if value != slot.old or slot.field:  # a module whose settings stay has its say on those that are shared
            parts[slot.path, slot.name, slot.field or ""][slot.at] = value
    result = []
    for (path, name, field), new in parts.items():
        held = vars(modules[path])[name]
        old = dict(fields_of(held))[field] if field else held
        whole: Value = new[None] if None in new else tuple(new.get(i, v) for i, v in enumerate(old))
        result.append(Edit(path, name, field, whole))
    return result


def apply_edits(model: nn.Module, edits: Edits) -> None:
    """Change the attributes of `model` in place. Raises FileError where it has no such integer attribute."""
    modules = dict(model.named_modules())
    unknown = [e.path for e in edits.values if e.path not in modules] + [
        n[0] for n in edits.narrow if n[0] not in modules
    ]
    if unknown:
        raise FileError(f"{type(model).__name__} has no module '{unknown[0]}'")
    for edit in edits.values:
        if not edit.field:
            setattr(modules[edit.path], edit.name, _like(_held(modules, edit), edit))
    _edit_settings(model, modules, [e for e in edits.values if e.field])
    for path, heads, size, scale in edits.narrow:
        owner, _, leaf = path.rpartition(".")
        if not isinstance(modules[path], nn.MultiheadAttention):
            raise FileError(f"'{path}' is no nn.MultiheadAttention")
        setattr(modules[owner], leaf, narrowed(modules[path], heads, size, scale))
    if edits.narrow:
        for module in model.modules():
            if isinstance(module, nn.TransformerEncoder):
                module.use_nested_tensor = False  # its nested tensors are made for torch's own attention alone
    refresh(model)


def _held(modules: Mapping[str, nn.Module], edit: Edit) -> Any:
    return vars(modules[edit.path]).get(edit.name, getattr(modules[edit.path], edit.name, None))


def _like(old: Any, edit: Edit) -> Value | list[int]:
    """The new value in the container of the old one."""
    several = isinstance(old, (list, tuple))
    if several != isinstance(edit.value, tuple) or not (several or type(old) is type(edit.value)):
        raise FileError(f"'{edit.path}.{edit.name}' holds {str(old)[:40]!r}, which {edit.value} cannot stand for")
    return list(edit.value) if isinstance(old, list) and isinstance(edit.value, tuple) else edit.value


# -- settings that modules share ---------------------------------------------------------------------------------------


def _edit_settings(model: nn.Module, modules: Mapping[str, nn.Module], edits: Sequence[Edit]) -> None:
    """Where all holders of one settings object agree it is edited, else each gets a copy of its own.

    A holder that nothing is known of agrees with everybody, and so does another object of the same class, such as the
    config of the whole network beside those of its encoder and its decoder.
    """
    by_object: dict[int, list[tuple[str, str]]] = defaultdict(list)
    held: dict[int, Any] = {}
    for path, module in modules.items():
        for name, value in vars(module).items():
            if fields_of(value):
                by_object[id(value)].append((path, name))
                held[id(value)] = value
    wanted: dict[tuple[str, str], dict[str, Value]] = defaultdict(dict)
    for edit in edits:
        wanted[edit.path, edit.name][edit.field] = edit.value
    asked = {k: [wanted[h] for h in holders if h in wanted] for k, holders in by_object.items()}
    for value in list(held.values()):
        for nested in (v for _, v in fields_of(value) if fields_of(v) and not isinstance(v, dict)):
            held.setdefault(id(nested), nested)
    for key, settings in held.items():
        mine = asked.get(key) or []
        if mine and _agreed(mine) is None:
            _part_ways(settings, mine, [(h, wanted[h]) for h in by_object[key] if h in wanted], modules)
            continue
        others = [a for k, found in asked.items() if k != key and type(held[k]) is type(settings) for a in found]
        kin = _agreed(others) or {} if not isinstance(settings, dict) else {}
        common = {**{f: v for f, v in kin.items() if not any(f in m for m in mine)}, **(_agreed(mine) or {})}
        _set_fields(model, settings, {f: v for f, v in common.items() if f in dict(fields_of(settings))})


def _part_ways(
    settings: Any,
    asked: Sequence[Mapping[str, Value]],
    holders: Sequence[tuple[tuple[str, str], Mapping[str, Value]]],
    modules: Mapping[str, nn.Module],
) -> None:
    """What all want goes into the shared object; what they differ in, into copies."""
    merged = [{f: v for f, v in a.items() if all(b.get(f, v) == v for b in asked)} for a in asked]
    shared = {f: v for fields in merged for f, v in fields.items()}
    for (path, name), fields in holders:
        setattr(modules[path], name, _with_fields(settings, {**shared, **fields}))
    if not _frozen(settings):
        _write(settings, shared)


def _agreed(asked: Sequence[Mapping[str, Value]]) -> dict[str, Value] | None:
    merged: dict[str, Value] = {}
    for fields in asked:
        for field, value in fields.items():
            if merged.setdefault(field, value) != value:
                return None
    return merged


def _set_fields(model: nn.Module, settings: Any, fields: Mapping[str, Value]) -> None:
    if _frozen(settings):
        new = _with_fields(settings, fields)
        for module in model.modules():
            for name, value in list(vars(module).items()):
                if value is settings:
                    setattr(module, name, new)
        return
    _write(settings, fields)


def _with_fields(settings: Any, fields: Mapping[str, Value]) -> Any:
    if _frozen(settings):
        return dataclasses.replace(settings, **fields)
    new = copy.copy(settings)
    _write(new, fields)
    return new


def _frozen(settings: Any) -> bool:
    return bool(getattr(getattr(type(settings), "__dataclass_params__", None), "frozen", False))


def _write(settings: Any, fields: Mapping[str, Value]) -> None:
    known = dict(fields_of(settings))
    for field, value in fields.items():
        old = known.get(field)
        new: Any = list(value) if isinstance(old, list) and isinstance(value, tuple) else value
        if type(old) is not type(new):
            raise FileError(f"the settings of the network hold {str(old)[:40]!r} as '{field}', not an integer")
        if isinstance(settings, dict):
            settings[field] = new
        else:
            setattr(settings, field, new)
