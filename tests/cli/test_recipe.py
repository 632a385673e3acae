"""Recipes: strict, explained by the key, and documented by examples/recipe.toml."""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import BaseModel

from paretoprune.core.data import Data
from paretoprune.core.errors import FileError, LimitError, UsageError
from paretoprune.core.protocols import Task
from paretoprune.pipeline import problem
from paretoprune.pipeline.recipe import Sections, read_recipe, settings
from paretoprune.pipeline.search import search
from paretoprune.pipeline.settings import Settings, seconds

EXAMPLES = Path(__file__).parents[2] / "examples"
MINIMUM = '[model]\nbuild = "tiny_net:build"\nshape = [1, 12, 12]\n[data]\nbuild = "tiny_net:data"\n'
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(more: str = "") -> Path:
        (tmp_path / "r.toml").write_text(MINIMUM + more, "utf-8")
        return tmp_path / "r.toml"

    return written


def schema() -> dict[str, dict[str, Any]]:
    """{section: {key: the default of the section's own model}}; [limits] is a free table."""
    found = {}
    for name, field in Sections.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            fields = field.annotation.model_fields
            found[name] = {k: f.get_default(call_default_factory=True) for k, f in fields.items()}
    return found


def true_default(section: str, key: str, own: Any) -> Any:
    """From where the default really is: `Settings`, the signature of `pp.search`, or the recipe's own schema."""
    if (section, key) == ("output", "folder"):
        return "runs/recipe"
    parameters = inspect.signature(search).parameters
    if section in ("task", "target") and key == "name":
        return parameters[section].default
    fields = {f.name: f.default for f in dataclasses.fields(Settings)}
    if section in ("search", "recovery", "target", "data") and key in fields:
        default = fields[key]
        return list(default) if isinstance(default, tuple) else default
    if key in ("budget", "device"):
        return parameters[key].default
    return own


def documented() -> dict[tuple[str, str], str]:
    """{(section, key): what examples/recipe.toml says that its default is}."""
    found, section = {}, ""
    for line in (EXAMPLES / "recipe.toml").read_text("utf-8").splitlines():
        if heading := re.match(r"\[(\w+)\]", line):
            section = heading[1]
        elif key := re.match(r"(?:# )?(\w+) = .*?# default: (.*)", line):
            found[section, key[1]] = key[2]
    return found


def test_the_example_documents_every_key_with_its_true_default() -> None:
    said = documented()
    expected = {(section, key) for section, fields in schema().items() for key in fields}
    assert set(said) - {("limits", "latency")} == expected
    for section, key in expected:
        default, text = true_default(section, key, schema()[section][key]), said[section, key]
        if "PydanticUndefined" in str(default):
            assert text.startswith("required."), (section, key)
        elif default is None:
            assert text.startswith("none."), (section, key)
        else:
            given = tomllib.loads(f"x = {re.split(r'[.] |$', text)[0]}")["x"]
            assert given == default, (section, key)


def test_the_two_defaults_of_the_budget_are_one() -> None:
    assert seconds(inspect.signature(search).parameters["budget"].default) == Settings().budget_s


def test_every_setting_has_a_key() -> None:
    keys = {key for section in ("data", "search", "recovery", "target") for key in schema()[section]}
    wanted = {f.name for f in dataclasses.fields(Settings)} - {"limits", "budget_s"} | {"budget", "device"}
    assert wanted <= keys


def test_the_examples_are_recipes(monkeypatch: pytest.MonkeyPatch) -> None:
    own = read_recipe(EXAMPLES / "recipe.toml")
    assert own.limits == ["accuracy drop <= 2 points", "latency <= 0.8x"]
    monkeypatch.delenv("PARETOPRUNE_DATA", raising=False)
    cifar = read_recipe(EXAMPLES / "cifar10.toml")
    assert cifar.limits == ["accuracy drop <= 1 point"]
    with pytest.raises(UsageError, match=r"model.checkpoint = '\$\{PARETOPRUNE_DATA\}/.*PARETOPRUNE_DATA is not set"):
        problem.problem_of(cifar)


def test_what_is_left_out_is_left_to_the_search(write: Write) -> None:
    recipe = read_recipe(write())
    assert recipe.options == {"limits": []}
    assert settings(recipe) == Settings()
    assert recipe.folder == recipe.file.parent / "runs" / "r"


def test_what_is_given_reaches_the_search(write: Write) -> None:
    more = (
        '[limits]\n"accuracy drop" = "<= 1 point"\n[search]\nbudget = "2 min"\nalign = 8\nkeep_ratio = 0\n'
        'ignore = ["stem"]\n[target]\nname = "onnxruntime"\nthreads = 2\n[recovery]\ndevice = "cuda"\nsteps = 0\n'
        '[output]\nfolder = "elsewhere"\n'
    )
    recipe = read_recipe(write(more))
    assert recipe.options == {
        "limits": ["accuracy drop <= 1 point"],
        "budget": "2 min",
        "align": 8,
        "keep_ratio": 0,
        "ignore": ["stem"],
        "target": "onnxruntime",
        "threads": 2,
        "device": "cuda",
        "steps": 0,
    }
    accepted = {**inspect.signature(search).parameters, **Settings.__dataclass_fields__}
    assert recipe.options.keys() <= accepted.keys()
    assert recipe.folder == recipe.file.parent / "elsewhere"


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ("[search]\ncandidate = 3\n", r"r.toml: unknown key 'search.candidate'; did you mean 'search.candidates'\?"),
        ("[search]\nsteps = 3\n", r"unknown key 'search.steps'; did you mean 'recovery.steps'\?"),
        ("[serach]\nseed = 3\n", r"unknown key 'serach'; did you mean 'search'\?"),
        ("[output]\nqqq = 3\n", r"unknown key 'output.qqq'; \[output\] has folder"),
        ("[search]\ncandidates = 'many'\n", r"search.candidates = 'many': expected a whole number"),
        ("[search]\ncandidates = 3.5\n", r"search.candidates = 3.5: expected a whole number"),
        ("[search]\ncandidates = true\n", r"search.candidates = True: expected a whole number"),
        ("[search]\ncandidates = 0\n", r"r.toml: candidates=0: give a whole number of at least 1"),
        ("[search]\nalign = 'some'\n", r"search.align = 'some': expected a whole number or 'auto'"),
        ("[search]\naxes = 'outer'\n", r"search.axes = 'outer': expected 'inner' or 'all'"),
        ("[search]\nignore = 'stem'\n", r"search.ignore = 'stem': expected a list"),
        ("[search]\nignore = ['a', 1]\n", r"search.ignore = 1: expected text in quotes"),
        ("[search]\nbudget = '20'\n", r"budget='20': give a time with its unit"),
        ("[recovery]\nlearning_rate = nan\n", r"learning_rate=nan: give a number above 0"),
        ("[limits]\nlatency = 5\n", r"limits.latency = 5: expected text in quotes"),
        ("[limits]\nlatency = '<= 5'\n", r"r.toml: limits.latency: .*add a unit"),
        ("[limits]\nlatencyy = '<= 5 ms'\n", r"r.toml: limits.latencyy: .*did you mean 'latency'\?"),
        ("[limits]\nlatency = '>= 5 ms'\n", r"did you mean 'latency <= 5 ms'\?"),
        ("[task]\nloss = 'a:b'\n", r"\[task\] needs loss and correct together"),
        ("[task]\nname = 'x'\nloss = 'a:b'\ncorrect = 'a:c'\n", r"keep one or the other"),
        ("search = 3\n", r"unknown key 'data.search'"),
        ("[search\n", r"r.toml is not TOML: .*line 6"),
    ],
)
def test_what_is_wrong_is_said_with_the_key(write: Write, more: str, says: str) -> None:
    with pytest.raises(UsageError, match=says) as found:
        read_recipe(write(more))
    assert "\n" not in str(found.value)


def test_several_wrong_keys_are_counted(write: Write) -> None:
    with pytest.raises(UsageError, match=r"2 more keys are wrong"):
        read_recipe(write("[search]\nseed = 'a'\nfloor = 'b'\naxes = 'c'\n"))


def test_an_input_is_described_once(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    for lines in ("", 'shape = [1]\nexample = "a:b"\n'):
        file.write_text(f'[model]\nbuild = "a:b"\n{lines}[data]\nbuild = "a:c"\n')
        with pytest.raises(UsageError, match=r"\[model\] needs either shape"):
            read_recipe(file)
    file.write_text('[data]\nbuild = "a:c"\n')
    with pytest.raises(UsageError, match=r"model is missing"):
        read_recipe(file)


def test_contradicting_limits_are_refused(write: Write) -> None:
    with pytest.raises(LimitError, match="accuracy drop"):
        read_recipe(write('[limits]\n"accuracy drop" = "<= 1 point"\naccuracy_drop = "<= 2 points"\n'))


def test_a_recipe_that_is_missing_or_huge_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot read the recipe"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(FileError, match="a recipe has at most"):
        read_recipe(tmp_path / "huge.toml")
    (tmp_path / "deep.toml").write_text("x = " + "[" * 100_000)
    with pytest.raises(UsageError, match=r"nested too deeply|is not TOML"):
        read_recipe(tmp_path / "deep.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(UsageError, match="is not TOML"):
        read_recipe(tmp_path / "bytes.toml")


def test_set_replaces_keys(write: Write) -> None:
    recipe = read_recipe(
        write('[search]\nseed = 1\n[limits]\nlatency = "<= 9 ms"\n'),
        ["search.seed=4", "limits.latency=<= 5 ms", "limits.accuracy drop=<= 1 point", "target.precisions=['fp32']"],
    )
    assert settings(recipe).seed == 4
    assert recipe.limits == ["latency <= 5 ms", "accuracy drop <= 1 point"]
    assert settings(recipe).precisions == ("fp32",)


@pytest.mark.parametrize("text", ["seed=4", "search.seed", "search..seed=4", "=4", "model.build.deep=1"])
def test_set_that_is_no_assignment_is_refused(write: Write, text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(f"--set {text!r}")):
        read_recipe(write(), [text])


def test_variables_are_filled_in_only_as_documented(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PP_HERE", "/data")
    monkeypatch.delenv("PP_NOT", raising=False)
    recipe = read_recipe(write('[output]\nfolder = "${PP_HERE}/runs"\n'))
    assert recipe.folder == Path("/data/runs")
    given = {"a": "${PP_HERE}/x", "b": ["$PP_HERE", "~/y"], "c": {"d": "${PP_HERE}"}, "e": 3}
    assert recipe.arguments("data.args", given) == {
        "a": "/data/x",
        "b": ["$PP_HERE", "~/y"],
        "c": {"d": "/data"},
        "e": 3,
    }
    with pytest.raises(UsageError, match=r"data.args.q = '\$\{PP_NOT\}': the environment variable PP_NOT is not set"):
        recipe.arguments("data.args", {"q": "${PP_NOT}"})


def test_data_may_be_a_tuple_a_dict_or_a_data() -> None:
    sets = ([1], [2], [3])
    assert problem.data_from(sets, "a:b") == Data(*sets)
    assert problem.data_from(dict(zip(("train", "validation", "test"), sets, strict=True)), "a:b") == Data(*sets)
    assert problem.data_from((*sets, [4]), "a:b").calibration == [4]
    assert problem.data_from(Data(*sets), "a:b") == Data(*sets)
    for wrong in ([1], (1, 2), {"train": [1]}, None):
        with pytest.raises(UsageError, match=r"data.build = 'a:b' gave"):
            problem.data_from(wrong, "a:b")


def test_shapes_become_inputs() -> None:
    x = problem.example_of_shape([3, 8], "float32")
    assert (x.shape, x.dtype) == ((2, 3, 8), torch.float32)
    assert problem.example_of_shape([5], "int64").eq(0).all()
    with pytest.raises(UsageError, match="without the batch"):
        problem.example_of_shape([0, 3], "float32")


def test_two_functions_are_a_task(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    found = problem.problem_of(read_recipe(work / "recipe.toml"))
    assert isinstance(found.task, Task)
    assert found.task.name == "tiny_net:loss tiny_net:correct"
    with pytest.raises(UsageError, match=r"task.loss = 'tiny_net:lss': cannot|has no attribute 'lss'"):
        problem.problem_of(read_recipe(work / "recipe.toml", ["task.loss=tiny_net:lss"]))


def test_a_module_beside_the_recipe_never_hides_pythons_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    problem.make_importable(tmp_path)
    standard = Path(inspect.__file__).parent
    assert sys.path.index(str(tmp_path)) > sys.path.index(str(standard))
    packages = [i for i, path in enumerate(sys.path) if path.endswith("site-packages")]
    assert sys.path.index(str(tmp_path)) < packages[0]
