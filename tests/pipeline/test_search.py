"""The search end to end: what it returns was measured, it resumes, it stops early where it should."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from torch import Tensor, nn

import paretoprune as pp
import paretoprune.pipeline.search as search_room
import paretoprune.targets.cost as cost_room
import paretoprune.targets.measure as measure_room
from paretoprune.core.graph import Example
from paretoprune.pipeline import artefact, candidates
from paretoprune.store.run import RunFolder, RunView
from paretoprune.targets import OnnxRuntime, Timing

errors = pp.errors
Searching = Callable[..., pp.Front]
OPTIONS: dict[str, Any] = {"candidates": 3, "steps": 3, "align": 4, "seed": 1}


def journal(folder: Path) -> RunView:
    return RunFolder.read(folder)


def session(path: Path) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def answer(path: Path, x: Tensor) -> Tensor:
    runner = session(path)
    return torch.from_numpy(runner.run(None, {runner.get_inputs()[0].name: x.numpy()})[0])


def accuracy(path: Path, batches: Iterable[Any]) -> float:
    hits = [answer(path, x).argmax(1) == y for x, y in batches]
    return float(torch.cat(hits).double().mean())


# -- once, with latencies that are really measured ------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Done:
    front: pp.Front
    folder: Path
    again: Callable[..., pp.Front]


@pytest.fixture(scope="session")
def done(
    make_net: Callable[[], nn.Module],
    example: Tensor,
    data: pp.Data,
    costs: Callable[..., float],
    tmp_path_factory: pytest.TempPathFactory,
) -> Done:
    folder = tmp_path_factory.mktemp("search") / "run"

    def run(**options: Any) -> pp.Front:
        given = {"limits": ["size <= 1 MB"], **OPTIONS, **options}
        return pp.search(make_net(), example, given.pop("data", data), out=folder, **given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artefact, "timing", lambda threads: Timing(pairs=20, max_pairs=60, min_sample_ms=0.5))
        patch.setattr(measure_room, "peak_memory", lambda *args, **options: None)
        patch.setattr(cost_room, "measure_layer", costs)
        return Done(run(), folder, run)


def test_the_original_is_there_once_with_speedup_one(done: Done) -> None:
    originals = [c for c in done.front.candidates if c.original]
    assert [c.name for c in originals] == ["original"]
    assert originals[0] is done.front.original
    assert originals[0].value("speedup") == 1
    assert originals[0].macs == 83_072
    assert not originals[0].plan.kept
    assert any(c.name == "original-int8" and not c.original for c in done.front.candidates)


def test_candidates_come_in_both_precisions_and_differ(done: Done) -> None:
    made = [c for c in done.front.candidates if c.name.startswith("c")]
    assert len(made) >= 4
    assert {c.precision for c in made} == {"fp32", "int8"}
    assert all(c.macs < done.front.original.macs for c in made)
    assert len({c.macs for c in made if c.precision == "fp32"}) == len(made) // 2


def test_every_figure_has_an_interval_and_the_machine(done: Done) -> None:
    for candidate in done.front.candidates:
        for key in ("accuracy", "validation", "latency_ms", "speedup", "size_bytes", "macs", "energy_mj"):
            taken = candidate.measurements[key]
            assert taken.low <= taken.value <= taken.high, (candidate.name, key)
        assert candidate.measurements["latency_ms"].target
        assert candidate.measurements["latency_ms"].low > 0
        assert candidate.measurements["energy_mj"].value > 0


def test_reported_accuracy_is_that_of_the_exported_file(done: Done, data: pp.Data) -> None:
    for candidate in done.front.candidates:
        assert candidate.path.is_file()
        assert candidate.path.is_absolute()
        assert candidate.accuracy == accuracy(candidate.path, data.test), candidate.name
        assert candidate.value("validation") == accuracy(candidate.path, data.validation), candidate.name
        assert candidate.size_bytes == candidate.path.stat().st_size


def test_a_loaded_member_answers_like_its_fp32_file(done: Done, data: pp.Data) -> None:
    x, _ = next(iter(data.test))
    made = [c for c in done.front.candidates if c.precision == "fp32" and not c.original]
    for candidate in made:
        with torch.no_grad():
            torch.testing.assert_close(candidate.load()(x), answer(candidate.path, x), rtol=1e-4, atol=1e-5)
    assert made


def test_members_are_not_dominated_and_faster(done: Done) -> None:
    assert done.front.members
    for member in done.front.members:
        assert member.on_front
        assert member.original or member.measurements["speedup"].low > 1


def test_every_artefact_is_sealed(done: Done) -> None:
    view = journal(done.folder)
    for candidate in done.front.candidates:
        view.verify(candidate.path.relative_to(view.path).as_posix())


def test_an_altered_member_is_not_loaded(done: Done) -> None:
    member = next(c for c in done.front.candidates if c.name.endswith("fp32"))
    weights = done.folder / "members" / member.name.removesuffix("-fp32") / "weights.safetensors"
    whole = weights.read_bytes()
    try:
        weights.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        with pytest.raises(errors.FileError, match="altered"):
            member.load()
    finally:
        weights.write_bytes(whole)


def test_a_second_call_resumes_and_does_nothing_again(done: Done) -> None:
    before = (done.folder / "journal.jsonl").read_bytes()
    started = time.process_time()
    front = done.again()
    assert time.process_time() - started < 5, "this is no resumption"
    assert front == done.front
    after = (done.folder / "journal.jsonl").read_bytes()
    assert after == before


def test_the_folder_alone_gives_the_same_front(done: Done) -> None:
    assert pp.read_front(done.folder) == done.front


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"limits": ["size <= 2 MB"]}, "size <= 2 MB"),
        ({"limits": []}, "limits"),
        ({"seed": 7}, r"seed.*\b7\b"),
        ({"searcher": "random"}, "random"),
    ],
)
def test_another_recipe_in_the_same_folder_is_refused_with_the_difference(
    done: Done, options: dict[str, Any], words: str
) -> None:
    before = (done.folder / "journal.jsonl").read_bytes()
    with pytest.raises(errors.StoreError, match=f"holds another search: .*{words}"):
        done.again(**options)
    assert (done.folder / "journal.jsonl").read_bytes() == before


def test_other_data_in_the_same_folder_is_refused(done: Done, data: pp.Data) -> None:
    with pytest.raises(errors.StoreError, match="holds another search: .*data"):
        done.again(data=dataclasses.replace(data, validation=list(data.test)))


# -- searchers --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("searcher", [*(pytest.param(s, marks=pytest.mark.slow) for s in ("random", "tpe")), "nsga2"])
def test_each_searcher_runs_and_replays(
    searching: Searching, tmp_path: Path, searcher: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(*args: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        # Dies when the third proposal is to be recorded.
        record = RunFolder.record

        def until_third(self: RunFolder, kind: str, key: str, payload: Any, **options: Any) -> Any:
            return die() if (kind, key) == ("proposal", "2") else record(self, kind, key, payload, **options)

        patch.setattr(RunFolder, "record", until_third)
        with pytest.raises(Killed):
            searching(searcher=searcher, evaluations=6)
    assert list(journal(tmp_path / "run").all("proposal")) == ["0", "1"]
    front = searching(searcher=searcher, evaluations=6)
    resumed = journal(tmp_path / "run").all("proposal")
    whole = searching(searcher=searcher, evaluations=6, out=tmp_path / "whole")
    assert resumed == journal(tmp_path / "whole").all("proposal")
    assert len(resumed) == 6
    assert len({str(p["widths"]) for p in resumed.values()}) == 6
    assert [c.plan for c in front.candidates] == [c.plan for c in whole.candidates]
    assert 1 <= len(front.candidates) - 1 <= 2
    assert all(c.plan.kept for c in front.candidates if not c.original), "the original was carried out again"


def test_a_damaged_line_in_the_middle_does_not_stop_a_resumption(searching: Searching, tmp_path: Path) -> None:
    first = searching()
    file = tmp_path / "run" / "journal.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    seconds = [i for i, line in enumerate(lines) if b'"kind":"seconds"' in line.replace(b" ", b"")]
    last = [i for i, line in enumerate(lines) if b'"kind":"candidate"' in line.replace(b" ", b"")][-1]
    lines[seconds[1]] = b"\x00garbage\n"
    file.write_bytes(b"".join(lines[:last]))
    again = searching()
    assert [c.name for c in again.candidates] == [c.name for c in first.candidates]
    assert journal(tmp_path / "run").quarantined == 1


# -- failures ---------------------------------------------------------------------------------------------------------


def failing(
    monkeypatch: pytest.MonkeyPatch, fails: Callable[[Path, str], bool], why: str = "no room on the moon"
) -> None:
    """Exports of the files that `fails` picks go wrong."""
    export = OnnxRuntime.export

    def maybe(
        self: OnnxRuntime, module: nn.Module, example: Example, path: Path, precision: str = "fp32", *rest: Any
    ) -> Path:
        if fails(Path(path), precision):
            raise errors.TargetError(why)
        return export(self, module, example, path, precision, *rest)

    monkeypatch.setattr(OnnxRuntime, "export", maybe)


def test_all_candidates_failing_groups_the_causes(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda path, _: path.name.startswith("c"))
    with pytest.raises(errors.AllCandidatesFailedError) as error:
        searching()
    assert str(error.value) == "no candidate could be finished: 2 × no room on the moon"
    assert error.value.exit_status != 0
    assert [c.name for c in pp.read_front(tmp_path / "run").candidates] == ["original"]


def test_one_that_fails_leaves_the_rest(searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda path, _: path.name.startswith("c01"))
    front = searching()
    assert [c.name for c in front.candidates] == ["original", "c02-fp32"]
    failures = journal(tmp_path / "run").all("failure")
    assert failures == {"c01-fp32": {"cause": "no room on the moon", "type": "TargetError"}}
    monkeypatch.undo()


def test_a_precision_that_the_network_cannot_have_leaves_the_others(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(monkeypatch, lambda _, precision: precision == "int8")
    front = searching(precisions=("fp32", "int8"), limits=["size <= 1 MB"])
    assert {c.precision for c in front.candidates} == {"fp32"}
    assert len(front.candidates) == 3
    assert set(journal(tmp_path / "run").all("failure")) == {"original-int8", "cheapest", "c01-int8", "c02-int8"}


def test_mixed_and_stored_precisions_compete_and_say_what_they_are(searching: Searching) -> None:
    front = searching(precisions=("fp32", "mixed", "fp16"), candidates=1)
    made = {c.precision: c for c in front.candidates if not c.original and c.name.startswith("original")}
    assert made.keys() == {"mixed", "fp16"}
    bits = made["mixed"].plan.bits
    assert set(bits.values()) == {"fp32"}
    assert bits.keys() < {"conv1.weight", "conv2.weight", "head.weight"}
    stored = {t.name for t in onnx.load(made["mixed"].path).graph.initializer}
    assert bits.keys() <= stored
    assert any(name.endswith("_quantized") for name in stored)
    assert made["fp16"].size_bytes < front.original.size_bytes
    assert not made["fp16"].plan.bits


def test_no_fp32_original_ends_the_search(searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, lambda _, precision: precision == "fp32")
    with pytest.raises(errors.TargetError, match="no room on the moon"):
        searching(precisions=("fp32", "int8"))


# -- limits -----------------------------------------------------------------------------------------------------------


def test_an_impossible_cost_is_refused_before_any_distillation(
    searching: Searching, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*args: Any, **options: Any) -> None:
        raise AssertionError("distillation began")

    monkeypatch.setattr(candidates, "_distil", never)
    monkeypatch.setattr(candidates, "_make", never)
    for _ in range(2):  # again when resumed
        with pytest.raises(errors.UnreachableLimitError) as error:
            searching(limits=["latency <= 0.000001 ms"], steps=50)
        assert error.value.exit_status == 3
        named = float(str(error.value).rpartition("raise the limit to at least ")[2].split(" ")[0])
        view = journal(tmp_path / "run")
        cheapest = view.done("reach", "cheapest")["fp32"]["latency_ms"]["value"]
        original = view.done("candidate", "original")["measurements"]["latency_ms"]["value"]
        assert min(cheapest, original) <= named <= 1.02 * min(cheapest, original)
    assert list(journal(tmp_path / "run").all("candidate")) == ["original"]
    assert journal(tmp_path / "run").all("network") == {}


def test_a_limit_that_none_meets_keeps_what_was_measured(searching: Searching, tmp_path: Path) -> None:
    with pytest.raises(errors.UnreachableLimitError, match="accuracy >= 100 %.*every measured network is kept in"):
        searching(limits=["accuracy >= 100 %"])
    assert len(pp.read_front(tmp_path / "run").candidates) == 3


def test_an_objective_that_is_only_estimated_is_refused_early(searching: Searching, tmp_path: Path) -> None:
    with pytest.raises(errors.UsageError, match="energy_mj was only estimated"):
        searching(objectives=["accuracy", "energy"])
    assert journal(tmp_path / "run").all("cost table") == {}


# -- the budget -------------------------------------------------------------------------------------------------------


def test_a_spent_budget_stops_after_four_for_good(searching: Searching, tmp_path: Path) -> None:
    front = searching(candidates=6, budget="0.001 s")
    assert [c.name for c in front.candidates] == ["original", "c01-fp32", "c02-fp32", "c03-fp32", "c04-fp32"]
    view = journal(tmp_path / "run")
    planned = len(view.done("chosen", "widths"))
    assert planned > 4
    assert view.all("out of budget") == {"5": {"planned": planned, "carried out": 4}}
    assert searching(candidates=6, budget="0.001 s") == front
    assert len(journal(tmp_path / "run").all("network")) == 4


def test_without_steps_given_the_budget_plans_them(searching: Searching, tmp_path: Path) -> None:
    searching(steps=None, budget="0.001 s")
    assert journal(tmp_path / "run").done("schedule", "steps")["steps"] == 0
    searching(steps=None, budget="1 h", out=tmp_path / "long", candidates=1)
    scheduled = journal(tmp_path / "long").done("schedule", "steps")
    assert scheduled["steps"] == 40  # ten epochs of four batches at most
    assert journal(tmp_path / "long").done("network", "c01")["steps"] == 40


# -- auto_prune -------------------------------------------------------------------------------------------------------


@pytest.fixture
def fast_by_macs(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that counts MACs: a choice by latency can then be checked."""
    taken = artefact.measure

    def measure(study: Any, name: str, file: Path, **how: Any) -> dict[str, pp.Measurement]:
        figures = taken(study, name, file, **how)
        macs = figures["macs"].value
        figures["latency_ms"] = pp.Measurement(macs / 1e6, 0.99 * macs / 1e6, 1.01 * macs / 1e6, 50, "ms")
        if name != "original":
            ratio = study.traced.macs() / macs
            figures["speedup"] = pp.Measurement(ratio, 0.99 * ratio, 1.01 * ratio, 50, "x")
        return figures

    for room in (artefact, search_room):
        monkeypatch.setattr(room, "measure", measure)


def test_auto_prune_meets_its_targets(fast_by_macs: None, net: nn.Module, data: pp.Data, tmp_path: Path) -> None:
    size = 12_000
    best = pp.auto_prune(
        net,
        data,
        target_size=f"{size} B",
        target_accuracy="30 %",
        step=4,
        keep_ratio=0.25,
        candidates=3,
        steps=8,
        precisions=("fp32",),
        out=tmp_path / "run",
    )
    front = pp.read_front(tmp_path / "run")
    assert front.original.size_bytes > size
    assert best.size_bytes <= size
    assert best.value("validation") is not None
    assert float(best.value("validation") or 0) >= 0.3
    assert best.meets_limits
    assert best.on_front
    able = [c for c in front.members if c.meets_limits]
    assert best.latency_ms == min(c.latency_ms for c in able)
    widths = {axis: len(kept) for axis, kept in best.plan.kept.items()}
    assert all(w % 4 == 0 for w in widths.values())
    assert widths.get("conv1", 16) >= 4
    assert widths.get("conv2", 32) >= 8
    assert best.load()(torch.zeros(3, 1, 8, 8)).shape == (3, 4)


def test_auto_prune_without_a_target_gives_the_knee(quick: None, net: nn.Module, data: pp.Data, tmp_path: Path) -> None:
    options: dict[str, Any] = {"step": 4, "candidates": 2, "steps": 0, "precisions": ("fp32",)}
    best = pp.auto_prune(net, data, out=tmp_path / "run", **options)
    assert best == pp.read_front(tmp_path / "run").knee()


# -- bad input, all of it before any work -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"searcher": "knapsak"}, "unknown searcher 'knapsak'.*did you mean 'knapsack'"),
        ({"criterion": "tailor"}, "unknown criterion 'tailor'"),
        ({"precisions": ("fp32", "int4")}, "precision 'int4' is not offered by onnxruntime"),
        ({"device": "cuda:99"}, "device='cuda:99' cannot be used"),
        ({"device": "abacus"}, "device='abacus' cannot be used"),
        ({"device": "meta"}, "device='meta' cannot be used"),
        ({"target": "onxruntime"}, "unknown target 'onxruntime'"),
        ({"task": "clasification"}, "unknown task 'clasification'"),
        ({"ignore": ["convolution*"]}, r"ignore='convolution\*' matches no axis"),
        ({"ignore": ["conv*"]}, "no axis to prune"),
        ({"data": [1, 2, 3]}, "data is a list; give paretoprune.Data"),
        ({"limits": ["latency <= 5"]}, "add a unit"),
        ({"budget": 5}, "with its unit"),
        ({"candidats": 5}, "unknown setting 'candidats'"),
    ],
)
def test_what_cannot_be_used_is_refused_before_any_work(
    searching: Searching, tmp_path: Path, options: dict[str, Any], words: str
) -> None:
    with pytest.raises(errors.UsageError, match=words):
        searching(**options)
    assert not (tmp_path / "run").exists()


def test_a_network_too_small_to_be_sped_up_is_said(searching: Searching, monkeypatch: pytest.MonkeyPatch) -> None:
    import paretoprune.targets.cost as cost_room

    monkeypatch.setattr(cost_room, "measure_layer", lambda target, spec, precision="fp32": 1.0 / spec.outputs)
    with pytest.raises(errors.PruneError, match="no narrower network was found"):
        searching()


def test_random_state_and_network_are_as_before(searching: Searching, net: nn.Module) -> None:
    net.train()
    before = {n: t.clone() for n, t in net.state_dict().items()}
    state = torch.get_rng_state(), str(np.random.get_state(legacy=False))
    searching(steps=2, model=net, candidates=1)
    assert torch.equal(torch.get_rng_state(), state[0])
    assert str(np.random.get_state(legacy=False)) == state[1]
    assert net.training
    assert all(torch.equal(t, before[n]) for n, t in net.state_dict().items())
