"""A recipe: one TOML file that says what to search, and how.

It is read strictly: an unknown key or a value of another type is an error that names the key. Nothing in it is
evaluated. The functions that it names as "pkg.mod:attribute" are imported and called, and nothing else is. A key that
is left out is left to `Settings` and `pp.search`: no default is repeated here.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from paretoprune.core.errors import FileError, LimitError, UsageError
from paretoprune.core.limits import Limits
from paretoprune.pipeline import recipe_errors
from paretoprune.pipeline.settings import Settings, settings_of

MAX_BYTES = 1 << 20
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
_LEFT: Any = None
"""A key that the recipe does not give."""

Arguments = dict[str, Any]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class ModelSection(Section):
    build: str
    args: Arguments = Field(default_factory=dict)
    checkpoint: str = _LEFT
    example: str = _LEFT
    shape: list[int] = _LEFT
    dtype: Literal["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"] = "float32"
    dynamic: dict[str, list[int]] = _LEFT


class DataSection(Section):
    build: str
    args: Arguments = Field(default_factory=dict)
    max_batches: int = _LEFT


class TaskSection(Section):
    name: str = _LEFT
    loss: str = _LEFT
    correct: str = _LEFT


class SearchSection(Section):
    budget: str = _LEFT
    searcher: str = _LEFT
    candidates: int = _LEFT
    evaluations: int = _LEFT
    axes: Literal["inner", "all"] = _LEFT
    ignore: list[str] = _LEFT
    align: int | Literal["auto"] = _LEFT
    floor: int = _LEFT
    keep_ratio: float = _LEFT
    criterion: str = _LEFT
    score_on: str = _LEFT
    objectives: list[str] = _LEFT
    activations: list[str] = _LEFT
    zeros: list[str] = _LEFT
    depth: bool = _LEFT
    metrics: list[str] = _LEFT
    robust_samples: int = _LEFT
    attack_eps: float = _LEFT
    seed: int = _LEFT


class RecoverySection(Section):
    device: str = _LEFT
    steps: int = _LEFT
    learning_rate: float = _LEFT
    nested: bool = _LEFT
    calibration_samples: int = _LEFT


class TargetSection(Section):
    name: str = _LEFT
    threads: int = _LEFT
    precisions: list[str] = _LEFT
    watts_per_core: float = _LEFT
    meter: str = _LEFT
    tune_threads: list[int] = _LEFT
    tune_batch: list[int] = _LEFT


class OutputSection(Section):
    folder: str = _LEFT


class Sections(Section):
    """What a recipe may hold."""

    model: ModelSection
    data: DataSection
    task: TaskSection = TaskSection()
    limits: dict[str, str] = Field(default_factory=dict)
    search: SearchSection = SearchSection()
    recovery: RecoverySection = RecoverySection()
    target: TargetSection = TargetSection()
    output: OutputSection = OutputSection()


@dataclass(frozen=True)
class Recipe:
    """A recipe that was read. Paths in it are relative to the folder of `file`."""

    file: Path
    sections: Sections

    @property
    def limits(self) -> list[str]:
        """The limits as `Limits.parse` takes them."""
        return [f"{metric} {bound}" for metric, bound in self.sections.limits.items()]

    @property
    def folder(self) -> Path:
        """The run folder: `output.folder`, or runs/<name of the recipe> beside it."""
        given = self.sections.output.folder
        return self.path("output.folder", given) if given else self.file.parent / "runs" / self.file.stem

    @property
    def options(self) -> dict[str, Any]:
        """Keywords for `pp.search`: those that the recipe gives, and no others."""
        sections = self.sections
        target = _given(sections.target)
        if "name" in target:
            target["target"] = target.pop("name")
        data = {k: v for k, v in _given(sections.data).items() if k == "max_batches"}
        model = {k: v for k, v in _given(sections.model).items() if k == "dynamic"}
        given = {**_given(sections.search), **_given(sections.recovery), **target, **data, **model}
        return {**given, "limits": self.limits}

    def path(self, key: str, text: str) -> Path:
        """A path in the recipe with its variables filled in. Raises UsageError naming the key."""
        return self.file.parent / expand(key, text)

    def arguments(self, key: str, given: Mapping[str, Any]) -> dict[str, Any]:
        """An `args` table with the variables in its texts filled in."""
        return {k: _expand_within(f"{key}.{k}", value) for k, value in given.items()}


def read_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; each override is "section.key=value". Raises FileError, UsageError or LimitError."""
    file = Path(path).absolute()
    table = _table(file)
    for override in overrides:
        _override(table, override)
    try:
        sections = Sections.model_validate(table)
    except ValidationError as error:
        raise UsageError(f"{file.name}: {recipe_errors.explain(error, Sections)}") from error
    recipe = Recipe(file, sections)
    _check(recipe)
    return recipe


def _check(recipe: Recipe) -> None:
    """What the types alone do not say."""
    name, model, task = recipe.file.name, recipe.sections.model, recipe.sections.task
    if (model.example is None) == (model.shape is None):
        raise UsageError(
            f"{name}: [model] needs either shape (of one sample, e.g. shape = [3, 32, 32]) or "
            "example (a function that gives an input, e.g. example = 'my_net:example')"
        )
    if (task.loss is None) != (task.correct is None):
        raise UsageError(f"{name}: [task] needs loss and correct together, or name alone")
    if task.name is not None and task.loss is not None:
        raise UsageError(f"{name}: [task] has name = {task.name!r} beside loss and correct; keep one or the other")
    for metric, text in zip(recipe.sections.limits, recipe.limits, strict=True):
        try:
            Limits.parse([text])
        except LimitError as error:
            raise LimitError(f"{name}: limits.{metric}: {error}") from error
    try:
        settings(recipe)
    except UsageError as error:
        raise type(error)(f"{name}: {error}") from error


def settings(recipe: Recipe) -> Settings:
    """The settings that this recipe leads to, defaults included."""
    known = {*Settings.__dataclass_fields__, "budget"}
    return settings_of(**{k: v for k, v in recipe.options.items() if k in known})


def _table(file: Path) -> dict[str, Any]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise FileError(f"{file} has {file.stat().st_size} bytes; a recipe has at most {MAX_BYTES}")
        return tomllib.loads(file.read_text("utf-8"))
    except OSError as error:
        raise FileError(f"cannot read the recipe {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{file.name} is not TOML: {error}") from error
    except RecursionError as error:
        raise UsageError(f"{file.name} is nested too deeply for a recipe") from error


def _override(table: dict[str, Any], text: str) -> None:
    """Put one "section.key=value" into the table. A value is TOML, or else plain text."""
    key, sign, value = text.partition("=")
    parts = [part.strip().strip("\"'") for part in key.split(".")]
    if not sign or len(parts) < 2 or not all(parts):
        raise UsageError(f"--set {text!r}: write section.key=value, for instance --set 'limits.latency=<= 5 ms'")
    place: Any = table
    for part in parts[:-1]:
        place = place.setdefault(part, {}) if isinstance(place, dict) else None
    if not isinstance(place, dict):
        raise UsageError(f"--set {text!r}: {'.'.join(parts[:-1])} is a value, not a section")
    place[parts[-1]] = _value(value.strip())


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (tomllib.TOMLDecodeError, RecursionError):
        return text


def _given(section: Section) -> dict[str, Any]:
    return section.model_dump(exclude_unset=True)


def _expand_within(key: str, value: Any) -> Any:
    if isinstance(value, str):
        return expand(key, value)
    if isinstance(value, list):
        return [_expand_within(key, item) for item in value]
    if isinstance(value, dict):
        return {k: _expand_within(f"{key}.{k}", item) for k, item in value.items()}
    return value


def expand(key: str, text: str) -> str:
    """`${NAME}` replaced by that environment variable; nothing else is special. Raises UsageError if it is not set."""

    def value_of(found: re.Match[str]) -> str:
        value = os.environ.get(found[1])
        if value is None:
            raise UsageError(f"{key} = {text!r}: the environment variable {found[1]} is not set; set it to the folder")
        return value

    return _VARIABLE.sub(value_of, text)


def model_section(table: Mapping[str, Any]) -> ModelSection:
    """A checked [model] section that does not come from a recipe."""
    try:
        return ModelSection.model_validate(dict(table))
    except ValidationError as error:
        raise UsageError(recipe_errors.explain(error, ModelSection)) from error
