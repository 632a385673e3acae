"""What is wrong with a recipe, in one sentence: the key, what was given, what is expected."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

LONGEST = 60


def explain(error: ValidationError, schema: type[BaseModel]) -> str:
    """One sentence for the first key that is wrong, and how many others are."""
    found: dict[str, list[Any]] = {}
    for one in error.errors(include_url=False, include_context=False):
        found.setdefault(_key(one["loc"], schema), []).append(one)
    key, errors = next(iter(found.items()))
    more = f" ({len(found) - 1} more keys are wrong)" if len(found) > 2 else ""
    more = " (one more key is wrong)" if len(found) == 2 else more
    return _sentence(key, errors, schema) + more


def _sentence(key: str, errors: Sequence[Any], schema: type[BaseModel]) -> str:
    first = errors[0]
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}; {_instead(key, schema)}"
    if first["type"] == "missing":
        return f"{key} is missing"
    # The two sides of a union are told one after the other.
    expected = " or ".join(dict.fromkeys(_expected(one) for one in errors))
    return f"{key} = {_shown(first['input'])}: expected {expected}"


def _expected(error: Any) -> str:
    kind = {
        "string_type": "text in quotes",
        "int_type": "a whole number",
        "float_type": "a number",
        "list_type": "a list",
        "dict_type": "a table",
        "model_type": "a section with keys",
        "bool_type": "true or false",
    }
    return kind.get(error["type"]) or str(error["msg"]).removeprefix("Input should be ")


def _shown(value: Any) -> str:
    text = "a table" if isinstance(value, dict) else repr(value)
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def _key(loc: Sequence[int | str], schema: type[BaseModel]) -> str:
    """The dotted key, without what pydantic adds for the sides of a union."""
    parts: list[str] = []
    place: Any = schema
    for part in loc:
        parts.append(str(part))
        field = place.model_fields.get(part) if _is_model(place) else None
        if not _is_model(place) or field is None or not _is_model(field.annotation):
            rest = loc[len(parts) :]
            named = field is not None and field.annotation is not None and "dict" in str(field.annotation)
            return ".".join([*parts, *(map(str, rest[:1]) if named else ())])
        place = field.annotation
    return ".".join(parts)


def _is_model(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _instead(key: str, schema: type[BaseModel]) -> str:
    """The nearest known key: here, or of that very name elsewhere; else what there is."""
    known = list(keys(schema))
    section, _, name = key.rpartition(".")
    here = [_name(k) for k in known if k.rpartition(".")[0] == section]
    elsewhere = [k for k in known if _name(k) == name]
    near = difflib.get_close_matches(name, here, n=1)
    if elsewhere or near:
        return f"did you mean {(elsewhere or [f'{section}.{near[0]}'.lstrip('.')])[0]!r}?"
    where = f"[{section}]" if section else "a recipe"
    return f"{where} has {', '.join(here)}"


def _name(key: str) -> str:
    return key.rpartition(".")[2]


def keys(schema: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Every dotted key, sections included."""
    for name, field in schema.model_fields.items():
        yield f"{prefix}{name}"
        if _is_model(field.annotation):
            yield from keys(field.annotation, f"{prefix}{name}.")  # type: ignore[arg-type]
