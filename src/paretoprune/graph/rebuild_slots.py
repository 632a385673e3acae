"""Integers that a module holds besides its tensors, and what each may have become: guesses in an order, no more."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from paretoprune.graph.rebuild_evidence import Evidence, Kinds
from paretoprune.graph.rebuild_layers import SIZE_NAMES, layer_of

_INTERNAL = frozenset(vars(nn.Module()))
_NEVER = re.compile(
    r"(^|_)(idx|index|id|ids|token|tokens|kernel|stride|strides|padding|pad|dilation|patch|window|shift|image|img|"
    r"resolution|layers?|depths?|blocks?|max|min|position|positions|seq|length|len|vocab|labels|classes|ratio|scale|"
    r"factor|step|steps|seed|buckets|distance|iterations?|version|rate|training|epochs?|beams?|top|return)(_|$)"
)
"""Words in names of numbers that are no width: positions, kernels, counts of layers."""

_FUSED = frozenset({"fused_attn", "use_fused_attn"})
"""Switches to an attention whose scale follows from the head size; the other way reads the scale that is held."""

_HEADS = frozenset({"heads", "kv groups", "query heads"})
_HEAD_SIZE = frozenset({"head size", "rotary pairs"})
_OUTER = frozenset({"residual", "embedding"})
_INNER = frozenset({"channel", "rnn hidden", "experts", "within"})

_HINTS: tuple[tuple[re.Pattern[str], tuple[frozenset[str], ...]], ...] = (
    (re.compile(r"groups$|n_rep$"), (frozenset({"query heads"}),)),
    (re.compile(r"(kv|key_?value)_?(heads|groups)|^(n|num)_?kv"), (frozenset({"kv groups"}), frozenset({"heads"}))),
    (re.compile(r"(head|kv).*(dim|size|width)|d_?(k|v|kv|head)$|(dim|size)_(per_)?head|proj_dim"), (_HEAD_SIZE,)),
    (re.compile(r"heads?$|^h$"), (_HEADS,)),
    (
        re.compile(r"^(intermediate|ffn|ff|mlp|d_ff|expan|n_inner|inner|mid|bottleneck)|(ffn|mlp|intermediate)_?\w*"),
        (_INNER,),
    ),
    (re.compile(r"expert"), (frozenset({"experts"}), _INNER)),
    (re.compile(r"embed|d_?model|model_dim|hidden_size|hidden_dim|^(n_)?embd?$|^dim$|^width$"), (_OUTER, _INNER)),
)
"""What a name says of the axes that its number is made of, the best first."""
_WHOLE = re.compile(r"all_head|attn_dim|inner_dim|split|qkv|kv_dim|q_size|kv_size")
"""Names of heads times head size."""
_SIZE_WORD = re.compile(
    r"dim|size|width|hidden|embd?|embed|channel|feature|plane|unit|inner|model|heads?$|shape|^d_|^n_|groups|split|ffn|"
    r"^nf$|^nx$|^ch|experts"
)


@dataclass(frozen=True)
class Slot:
    """One integer: attribute `name` of the module at `path`, or `field` of the object that `name` holds.

    `at` is the place in a list or tuple. `choices`: new values, the likeliest first; the first may be the old one.
    """

    path: str
    name: str
    field: str | None
    at: int | None
    old: int
    choices: tuple[int, ...]

    @property
    def label(self) -> str:
        return f"{self.name}.{self.field}" if self.field else self.name


def slots_of(model: nn.Module, evidence: Mapping[str, Evidence]) -> list[Slot]:
    """Every integer of every module for which there is evidence and more than the old value to choose from.

    A field of shared settings that stays is listed too where it changes for another module.
    """
    found: list[Slot] = []
    spoken = _spoken(model, evidence)
    for path, module in model.named_modules():
        for name, value in vars(module).items() if path in spoken else ():
            found += _fields(path, name, value, spoken[path])
        seen = evidence.get(path)
        if seen is None or (type(module).__module__.startswith("torch.nn.") and not _has_sizes(module)):
            continue
        taken = SIZE_NAMES if layer_of(module) is not None else frozenset()
        for name, value in vars(module).items():
            if name in _FUSED and value is True:
                found.append(Slot(path, name, None, None, True, (True, False)))
            elif name not in _INTERNAL and name not in taken:
                found += _slots(path, name, value, seen)
    changing = {(s.name, s.field) for s in found if s.choices != (s.old,)}
    return [s for s in found if s.choices and (s.choices != (s.old,) or (s.field and (s.name, s.field) in changing))]


def _has_sizes(module: nn.Module) -> bool:
    """torch's own layers outside the table that name sizes of dims."""
    return isinstance(module, (nn.Unflatten, nn.ChannelShuffle, nn.Transformer))


def _slots(path: str, name: str, value: Any, seen: Evidence) -> Iterator[Slot]:
    for at, number in _integers(value):
        yield Slot(path, name, None, at, number, _choices(name, number, seen))


def _fields(path: str, name: str, value: Any, seen: Evidence) -> Iterator[Slot]:
    for field, held in fields_of(value):
        for at, number in _integers(held):
            if choice := _said(field, number, seen):
                yield Slot(path, name, field, at, number, choice)


def _spoken(model: nn.Module, evidence: Mapping[str, Evidence]) -> dict[str, Evidence]:
    """What each module that holds settings says of them: for itself and for the modules within that hold none."""
    holders = {
        p for p, m in model.named_modules() if any(fields_of(v) for n, v in vars(m).items() if n not in _INTERNAL)
    }
    spoken: dict[str, Evidence] = {}
    for path, seen in evidence.items():
        owner: str | None = path
        while owner is not None and owner not in holders:
            owner = owner.rpartition(".")[0] if owner else None
        if owner is not None:
            spoken.setdefault(owner, Evidence()).add(seen)
    return spoken


def _integers(value: Any) -> list[tuple[int | None, int]]:
    if type(value) is int:
        return [(None, value)] if value > 1 else []
    if isinstance(value, (list, tuple)) and value and all(type(v) is int for v in value):
        return [(i, v) for i, v in enumerate(value) if v > 1]
    return []


def fields_of(value: Any) -> list[tuple[str, Any]]:
    """Names and values of a plain object that holds settings: a config, a namespace, a dataclass, a dict."""
    if isinstance(value, dict):
        return [(k, v) for k, v in value.items() if isinstance(k, str)]
    kind = type(value)
    if kind.__module__ in ("builtins", "torch") or isinstance(value, (nn.Module, type)) or callable(value):
        return []
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def _said(name: str, old: int, seen: Evidence) -> tuple[int, ...]:
    """Settings hold sizes of the whole network: the one new value that is made of the very axes that the name means."""
    word = name.lower().strip("_")
    if _NEVER.search(word):
        return ()
    exprs = seen.exprs.get(old, {})
    fitting = [new for new in seen.values(old) if _fit(word, exprs.get(new, set())) == 0]
    return tuple(fitting) if len(fitting) == 1 else ()


def _choices(name: str, old: int, seen: Evidence) -> tuple[int, ...]:
    """New values of an attribute by how well they fit its name; the old one is always among them."""
    word = name.lower().strip("_")
    found = seen.values(old)
    if _NEVER.search(word) or not found:
        return (old,)
    literal: Mapping[int, int] = seen.literal.get(old, {})
    sized = bool(_SIZE_WORD.search(word))

    def rank(new: int) -> tuple[int, int, int]:
        fits = _fit(word, seen.exprs.get(old, {}).get(new, set()))
        spoken = 0 if new in literal else 1
        return (fits, spoken, found.index(new)) if sized else (spoken, fits, found.index(new))

    ordered = sorted(found, key=rank)
    if not any(new in literal for new in ordered) and (not sized or all(_misfit(word, seen, old, n) for n in ordered)):
        ordered = [old, *ordered]
    return tuple(dict.fromkeys([*ordered, old]))


def _misfit(word: str, seen: Evidence, old: int, new: int) -> bool:
    """Does the name speak of other axes than those that the new value is made of?"""
    kinds = seen.exprs.get(old, {}).get(new, set())
    spoken = next((w for pattern, w in _HINTS if pattern.search(word)), ())
    return bool(spoken) and not _WHOLE.search(word) and not any(k & w for k in kinds for w in spoken)


def _fit(word: str, kinds: set[Kinds]) -> int:
    """0: made of just the axes that the name speaks of. Larger: less so."""
    if _WHOLE.search(word):
        return 0 if any(k & _HEADS and k & _HEAD_SIZE for k in kinds) else 1
    for pattern, wanted in _HINTS:
        if pattern.search(word):
            for place, want in enumerate(wanted):
                if any(k and k <= want for k in kinds):
                    return place
            return len(wanted) + (0 if any(k & want for k in kinds for want in wanted) else 1)
    return 1
