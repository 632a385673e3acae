"""FAULTS 27, 36, 55 to 58, 61 and 62 for the files and networks of targets beside ONNX."""

from __future__ import annotations

import json
import pickle
import random
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import paretoprune as pp
from paretoprune.core.errors import FileError, TargetError
from paretoprune.core.graph import Example
from paretoprune.pipeline.targets import find_target
from paretoprune.targets import graph_file
from paretoprune.targets.executorch_runner import About, packed, unpacked
from paretoprune.targets.graph_file import GraphFile

pytestmark = pytest.mark.fault

X = torch.randn(4, 3)
ABOUT = About((("input", (32, 3), "float32", True),), (True,), 32)


@pytest.fixture(scope="module")
def target() -> Any:
    return find_target("torch")


@pytest.fixture
def file(target: Any, tmp_path: Path) -> Path:
    path: Path = target.export(nn.Linear(3, 2), Example.of(X), tmp_path / "f.safetensors")
    return path


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16, torch.float64])
def test_27_a_network_of_another_type_is_refused_and_not_cast(target: Any, tmp_path: Path, kind: torch.dtype) -> None:
    net, example = nn.Linear(3, 2).to(kind), Example.of(X.to(kind))
    short = str(kind).removeprefix("torch.")
    with pytest.raises(TargetError, match=rf"weight is {short}.*float32.*model.float\(\)"):
        target.export(net, example, tmp_path / "f.safetensors")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("kind", "precision"), [(torch.bfloat16, "bf16"), (torch.float16, "fp16")])
def test_27_a_half_network_is_measured_as_it_is(target: Any, tmp_path: Path, kind: torch.dtype, precision: str) -> None:
    if precision not in target.precisions:
        pytest.skip(f"this CPU does not compute {precision}")
    net = nn.Linear(3, 2).to(kind)
    path = target.export(net, Example.of(X.to(kind)), tmp_path / "f.safetensors", precision)
    held = graph_file.read(path)
    assert {t.dtype for t in held.tensors.values()} == {kind}
    x = np.ones((5, 3), np.float32 if kind == torch.bfloat16 else np.float16)
    with torch.no_grad():
        expected = net(torch.from_numpy(x).to(kind)).float().numpy()
    np.testing.assert_allclose(target.load(path)({"input": x})[0], expected, rtol=1e-2, atol=1e-3)


def test_27_a_network_of_two_types_is_refused(target: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2).to(torch.bfloat16))
    for precision in ("fp32", "bf16"):
        with pytest.raises(TargetError, match="throughout"):
            target.export(net, Example.of(X), tmp_path / "f.safetensors", precision)


def test_36_parts_on_two_devices_are_both_named(target: Any, tmp_path: Path) -> None:
    net = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2, device="meta"))
    with pytest.raises(pp.errors.ModelError, match=r"'0.weight' on cpu and '1.weight' on meta"):
        pp.export(net, X, tmp_path / "f.safetensors", target="torch")


class Bomb:
    """Runs when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("exploded"),))


def test_55_nothing_is_unpickled(target: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "f.safetensors"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(FileError):
        target.load(path)
    with zipfile.ZipFile(path, "w") as archive:  # as torch.save and torch.export.save write
        archive.writestr("archive/data.pkl", pickle.dumps(Bomb()))
    with pytest.raises(FileError):
        target.load(path)
    assert not (tmp_path / "exploded").exists()


def test_55_a_graph_may_name_tensor_operators_alone(target: Any, file: Path) -> None:
    held = graph_file.read(file)
    for name in ("os.system", "builtins.exec", "aten.from_file.default", "torch.load"):
        graph = json.loads(json.dumps(dict(held.graph)))
        next(n for n in graph["nodes"] if n["op"] == "call_function")["target"] = name
        graph_file.write(file, GraphFile("fp32", held.inputs, 1, graph, held.tensors))
        with pytest.raises(FileError, match="no tensor operator"):
            target.load(file)


def test_56_truncated_files_are_refused(target: Any, file: Path) -> None:
    whole = file.read_bytes()
    for size in (0, 7, 8, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:size])
        with pytest.raises(FileError):
            target.load(file)
    file.write_bytes(whole + b"\0")
    with pytest.raises(FileError, match="SHA-256"):
        target.load(file)


def test_57_no_flipped_bit_is_loaded(target: Any, file: Path) -> None:
    whole, dice = file.read_bytes(), random.Random(0)
    for _ in range(300):
        data, at = bytearray(whole), dice.randrange(8 * len(whole))
        data[at // 8] ^= 1 << at % 8
        file.write_bytes(bytes(data))
        with pytest.raises(FileError):
            target.load(file)
    file.write_bytes(whole)
    target.load(file)


def test_57_nor_one_of_a_pte_file(tmp_path: Path) -> None:
    """Before its own runtime sees it, which is not asked here."""
    path, whole, dice = tmp_path / "f.pte", packed(bytes(200), ABOUT), random.Random(0)
    path.write_bytes(whole)
    assert unpacked(path) == (bytes(200), ABOUT)
    for _ in range(300):
        data, at = bytearray(whole), dice.randrange(8 * len(whole))
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(bytes(data))
        with pytest.raises(FileError):
            unpacked(path)
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        with pytest.raises(FileError):
            unpacked(path)


def test_58_a_newer_file_says_upgrade(target: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = graph_file.read(file)
    monkeypatch.setattr(graph_file, "SCHEMA", 2)
    graph_file.write(file, held)
    monkeypatch.undo()
    with pytest.raises(FileError, match="schema 2, this version reads up to 1: upgrade"):
        target.load(file)


def test_61_62_a_giant_header_or_file_is_refused_before_it_is_read(
    target: Any, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = file.read_bytes()
    file.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(FileError, match="truncated"):
        target.load(file)
    file.write_bytes(whole)
    monkeypatch.setattr(graph_file, "MAX_HEADER_BYTES", 100)
    with pytest.raises(FileError, match="header of .* bytes, more than the 100"):
        target.load(file)
    monkeypatch.setattr(graph_file, "MAX_FILE_BYTES", 100)
    with pytest.raises(FileError, match="bytes, more than the 100 that are sensible"):
        target.load(file)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda about: about.pop("graph"),
        lambda about: about.update(inputs=[{"name": "input", "evil": 1}]),
        lambda about: about["inputs"][0].update(dtype="object"),
        lambda about: about["inputs"][0].update(cast="load"),
        lambda about: about.update(inputs=about["inputs"] * 2),
        lambda about: about.update(alias={"a": "nowhere"}),
        lambda about: about.update(outputs="many"),
        lambda about: about.update(graph={"nodes": [{"op": "call_module"}]}),
    ],
)
def test_58_what_somebody_wrote_with_a_sound_checksum_is_checked_too(
    target: Any, file: Path, monkeypatch: pytest.MonkeyPatch, spoil: Callable[[dict[str, Any]], Any]
) -> None:
    held, dumps = graph_file.read(file), json.dumps

    def spoilt(about: dict[str, Any]) -> str:
        spoil(about)
        return dumps(about)

    monkeypatch.setattr(graph_file.json, "dumps", spoilt)
    graph_file.write(file, held)
    monkeypatch.undo()
    with pytest.raises(FileError):
        target.load(file)
