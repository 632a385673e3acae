"""Faults as a user meets them at the command line: one line, an exit status, and everything finished is kept."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from paretoprune.cli import app
from paretoprune.core.errors import FileError
from paretoprune.store.journal import Journal
from paretoprune.store.run import RunFolder

pytestmark = pytest.mark.fault

TINY = Path(__file__).parents[1] / "cli" / "tiny"
SRC = Path(__file__).parents[2] / "src"
SECRET = "hunter2-4f9c"
ESCAPE = "\x1b"
FP32 = ("--set", "target.precisions=['fp32']")  # halves the work
Invoke = Callable[..., Any]


def copy_tiny(folder: Path) -> Path:
    return Path(shutil.copytree(TINY, folder, ignore=shutil.ignore_patterns("__pycache__")))


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared_cache: str) -> Path:
    monkeypatch.setenv("PARETOPRUNE_CACHE", shared_cache)
    return copy_tiny(tmp_path / "work")


@pytest.fixture
def invoke(monkeypatch: pytest.MonkeyPatch) -> Iterator[Invoke]:
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "tiny_net", raising=False)

    def call(*args: str | Path) -> Any:
        return CliRunner().invoke(app, [str(arg) for arg in args])

    yield call
    sys.modules.pop("tiny_net", None)
    logging.disable(logging.NOTSET)


def start(work: Path, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "paretoprune", *words],
        cwd=work,
        env={**os.environ, "PYTHONPATH": str(SRC)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=200)
    return process.returncode, out, err


def records(folder: Path, kind: str) -> dict[str, Any]:
    try:
        return RunFolder.read(folder).all(kind)
    except FileError:
        return {}


def wait_for(folder: Path, kind: str, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while len(records(folder, kind)) < count:
        assert process.poll() is None, ended(process)
        assert time.monotonic() < deadline
        time.sleep(0.02)


def refused(found: Any, status: int = 2) -> str:
    """The one line of an error, after whatever progress was shown."""
    assert found.exit_code == status, found.stderr
    assert "Traceback" not in found.stderr
    line: str = found.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert ESCAPE not in found.stderr + found.stdout
    return line


@pytest.mark.slow
def test_01_kill_9_at_several_moments_then_the_front_works_and_nothing_is_done_twice(
    invoke: Invoke, work: Path
) -> None:
    folder = work / "runs" / "recipe"
    run = ["run", "recipe.toml", *FP32]
    kept: dict[str, Any] = {}
    for kind, count in (("network", 1), ("candidate", 2)):
        process = start(work, *run)
        wait_for(folder, kind, count, process)
        process.send_signal(signal.SIGKILL)
        assert ended(process)[0] == -signal.SIGKILL
        now = records(folder, "candidate")
        assert {name: now[name] for name in kept} == kept
        kept = now
        found = invoke("front", folder, "--json")
        if "original" in kept:
            assert found.exit_code == 0, found.stderr
            assert {m["name"] for m in json.loads(found.stdout)["members"]} == set(kept)
        else:
            assert "not measured yet" in refused(found)
    status, _, err = ended(start(work, *run))
    assert status == 0, err
    assert f"{len(kept)} exported files are measured already" in err
    done = Counter(
        (e.record["kind"], e.record["key"])
        for e in Journal.read(folder / "journal.jsonl").entries
        if e.record["kind"] not in ("_seal", "export")  # how a file was made is written before it is measured
    )
    assert max(done.values()) == 1
    assert sorted(key for kind, key in done if kind == "candidate") == ["c01-fp32", "c02-fp32", "original"]
    assert {name: records(folder, "candidate")[name] for name in kept} == kept


def test_13_ctrl_c_saves_the_front_and_the_run_goes_on_later(work: Path) -> None:
    folder = work / "runs" / "recipe"
    process = start(work, "run", "recipe.toml", "--json", *FP32, "--set", "recovery.steps=1000000")
    wait_for(folder, "chosen", 1, process)
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    status, out, err = ended(process)
    assert status == 130, err
    assert "Traceback" not in err
    assert "error: stopped by Ctrl-C; what was finished is kept in" in err
    assert {m["name"] for m in json.loads(out)["members"]} == {"original"}
    assert (folder / "report.html").is_file()
    assert set(records(folder, "candidate")) == {"original"}


def test_13_a_second_ctrl_c_leaves_at_once(work: Path) -> None:
    process = start(work, "run", "recipe.toml", "--set", "data.args.fault=stubborn")
    assert process.stderr is not None
    for expected in ("stubborn", "swallowed"):
        while expected not in (line := process.stderr.readline()):
            assert line, ended(process)
        time.sleep(0.5)  # until it sleeps itself
        process.send_signal(signal.SIGINT)
    assert process.wait(timeout=30) == 130
    process.communicate()


def test_13_a_ctrl_c_that_fell_into_a_destructor_comes_again() -> None:
    code = """
import signal, time
from paretoprune.cli import guard
guard.SWALLOWED_S = 0.4
class Dropping:
    def __del__(self):
        signal.raise_signal(signal.SIGINT)
with guard.second_interrupt_leaves() as interrupts:
    Dropping()
    print("dropped", flush=True)
    try:
        time.sleep(60)
    except KeyboardInterrupt:
        interrupts.taken()
        time.sleep(1)
        print("caught", flush=True)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=True)
    assert done.stdout.split() == ["dropped", "caught"]


def test_15_when_all_candidates_fail_the_causes_are_counted_and_the_originals_kept(invoke: Invoke, work: Path) -> None:
    found = invoke("run", work / "recipe.toml", "--set", "target.name=tiny_net:broken_target")
    counted = re.search(r"(\d+) × this runtime has had enough", refused(found, status=5))
    assert counted  # one or two: what the timing table of this minute proposes
    assert "original-int8" in found.stdout
    assert f"note: {counted[1]} failed: this runtime has had enough" in found.stderr
    assert (work / "runs" / "recipe" / "report.html").is_file()


@pytest.mark.parametrize(
    ("number", "change", "says"),
    [
        (18, "model.args.branch=true", "tiny_net.py"),
        (19, "model.args.nan=true", "second.weight"),
        (39, "data.args.fault=empty", "train is empty"),
        (40, "data.args.fault=labels", "4 classes"),
        (44, "data.args.fault=shape", "(any, 1, 10, 10)"),
        (45, "data.args.fault=once", "can be read only once"),
        (48, "limits.speedup=>= 1000x", "the fastest candidate reaches"),
        (50, "limits.latency=<= -5 ms", "must be above 0"),
        (51, "limits.latency=<= nan ms", "finite number"),
        (52, "limits.latency=<= 5", "add a unit"),
        (52, "limits.size=<= 50 %", "50 % of what?"),
    ],
)
def test_18_to_52_bad_input_is_one_line_at_the_command_line(
    invoke: Invoke, work: Path, number: int, change: str, says: str
) -> None:
    recipe = work / "recipe.toml"
    if number == 40:  # a task that knows what a label is
        recipe.write_text(recipe.read_text("utf-8").replace("loss =", "#").replace("correct =", "#"), "utf-8")
    found = invoke("run", recipe, "--set", change, *FP32)
    assert says in refused(found, status=3 if number == 48 else 2)


class Bomb:
    """Unpickling it creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.system, (f"touch '{self.mark}'",))


@pytest.mark.parametrize("form", ["raw", "torch", "inside"])
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl"])
def test_55_a_malicious_checkpoint_is_never_executed(invoke: Invoke, work: Path, form: str, suffix: str) -> None:
    mark, buffer = work / "executed", io.BytesIO()
    if form == "raw":
        pickle.dump(Bomb(mark), buffer)
    else:
        torch.save({"state_dict": Bomb(mark)} if form == "inside" else Bomb(mark), buffer)
    (work / f"weights{suffix}").write_bytes(buffer.getvalue())
    found = invoke("run", work / "recipe.toml", "--set", f"model.checkpoint=weights{suffix}")
    assert f"weights{suffix}" in refused(found)
    assert not mark.exists()


def test_55_the_bomb_itself_would_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "executed")))  # noqa: S301 - that is the point
    assert (tmp_path / "executed").exists()


CODE = "__import__('os').system('touch executed')"
KEYS = (
    *("model.build", "model.example", "model.checkpoint", "model.dtype", "data.build", "task.name", "task.loss"),
    *("limits.latency", "search.budget", "search.searcher", "search.criterion", "recovery.device", "target.name"),
    "target.meter",
)
FORMS = (f"tiny_net:{CODE}", f"${{{CODE}}}", "!!python/object/apply:os.system [touch executed]")


@pytest.mark.parametrize(("key", "text"), [*((key, CODE) for key in KEYS), *(("model.build", t) for t in FORMS)])
def test_63_code_in_a_recipe_is_text(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, key: str, text: str
) -> None:
    monkeypatch.chdir(work)
    more = ["--set", "task.correct=tiny_net:correct"] if key == "task.loss" else []
    changes = ["--set", f'{key}="""{text}"""', *more]
    if key == "task.name":
        recipe = (work / "recipe.toml").read_text("utf-8")
        (work / "recipe.toml").write_text(recipe.replace("loss =", "#").replace("correct =", "#"), "utf-8")
    refused(invoke("run", "recipe.toml", *changes))
    assert not (work / "executed").exists()


@pytest.mark.parametrize("key", ["model.build", "data.build"])
@pytest.mark.parametrize(
    "reference", ["os:system", "tiny_net:os.system", "subprocess:getoutput", "torch:load", "builtins:exec"]
)
def test_63_a_recipe_alone_cannot_call_what_runs_programs(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, key: str, reference: str
) -> None:
    monkeypatch.chdir(work)
    arguments = f'{key.partition(".")[0]}.args={{command = "touch executed"}}'
    found = invoke("run", "recipe.toml", "--set", f"{key}={reference}", "--set", arguments)
    assert "name a function of your own" in refused(found)
    assert not (work / "executed").exists()


@pytest.mark.parametrize("reference", ["os:abort", "tiny_net:os.abort", "tiny_net:sys.exit"])
def test_63_a_meter_is_no_way_round(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    monkeypatch.chdir(work)
    found = invoke("run", "recipe.toml", "--set", f"target.meter={reference}")
    assert "name a function of your own" in refused(found)


@pytest.mark.parametrize("name", [f"a{ESCAPE}[31mb", f"a{ESCAPE}]0;title\x07b", "a\u202eb"])
def test_64_layer_names_command_no_terminal(invoke: Invoke, work: Path, name: str) -> None:
    (work / "evil.toml").write_text(
        f'[model]\nbuild = "tiny_net:build"\nshape = [1, 24, 24]\nargs = {{ name = {json.dumps(name)} }}\n'
        '[data]\nbuild = "tiny_net:data"\n',
        "utf-8",
    )
    found = invoke("inspect", work / "evil.toml")
    for text in (found.stdout, found.stderr):
        assert not {ESCAPE, "\x07", "\u202e"} & set(text)
    assert "Traceback" not in found.stderr
    if found.exit_code == 0:
        assert "a\\x1b" in found.stdout or "a\\u202e" in found.stdout


def test_64_paths_and_messages_command_no_terminal(invoke: Invoke, work: Path) -> None:
    name = f"x{ESCAPE}[2J"
    assert "x\\x1b[2J" in refused(invoke("front", work / name))
    assert "x\\x1b[2J" in refused(invoke("run", work / f"{name}.toml"))
    assert "x\\x1b[2J" in refused(invoke("run", work / "recipe.toml", "--set", f"search.{name}=1"))
    assert "\\x1b[31mwas not there" in refused(invoke("run", work / "recipe.toml", "--set", "model.args.fail=true"))
    assert refused(invoke(f"run{ESCAPE}[2J"))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory, shared_cache: str) -> tuple[Path, str, str]:
    """A run with secrets in the environment and in the recipe, into a folder with an escape sequence in its name."""
    work = copy_tiny(tmp_path_factory.mktemp("hostile") / "work")
    changes = [f"model.args.token={SECRET}", f"data.args.token={SECRET}", 'output.folder="runs/\\u001b[31mred"']
    words = [word for change in changes for word in ("--set", change)]
    environment = {**os.environ, "PYTHONPATH": str(SRC), "MY_API_KEY": SECRET, "PARETOPRUNE_CACHE": shared_cache}
    done = subprocess.run(
        [sys.executable, "-m", "paretoprune", "run", "recipe.toml", *words, *FP32, "--set", "search.candidates=1"],
        cwd=work,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return work / "runs" / f"{ESCAPE}[31mred", done.stdout, done.stderr


def test_64_a_folder_name_commands_no_terminal(hostile: tuple[Path, str, str], invoke: Invoke) -> None:
    folder, out, err = hostile
    for text in (out, err, *(invoke(*words).stdout for words in (["front", folder], ["report", folder]))):
        assert ESCAPE not in text
    assert "\\x1b[31mred" in out
    assert ESCAPE not in invoke("front", folder, "--json").stdout
    assert ESCAPE not in (folder / "report.html").read_text("utf-8")


def test_67_no_secret_reaches_journal_report_or_terminal(hostile: tuple[Path, str, str]) -> None:
    folder, out, err = hostile
    texts = {"stdout": out.encode(), "stderr": err.encode()}
    texts |= {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    assert len(texts) > 6
    assert [name for name, text in texts.items() if SECRET.encode() in text] == []


def test_67_errors_show_variables_by_name_not_by_value(
    invoke: Invoke, work: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_API_KEY", SECRET)
    for change in (
        "model.checkpoint=${MY_API_KEY}/w.safetensors",
        "search.unknown=${MY_API_KEY}",
        f"data.tok={SECRET}",
    ):
        found = invoke("run", work / "recipe.toml", "--set", change)
        assert SECRET not in refused(found)
