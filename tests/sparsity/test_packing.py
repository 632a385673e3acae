"""Packed weights come back as they were, in memory and from a file; damaged ones are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from safetensors import safe_open
from safetensors.numpy import save_file

from paretoprune.core.errors import FileError, ModelError, UsageError
from paretoprune.sparsity import (
    Packed,
    Unstructured,
    load_packed,
    pack,
    pack_int8,
    pack_signs,
    pattern_of,
    save_packed,
    unpack,
    unpack_signs,
)
from paretoprune.sparsity.files import KEY, _digest
from paretoprune.sparsity.packing import decode, encode, gaps_of
from sparse_reference import sparse_weight

few = settings(max_examples=30)
shapes = st.one_of(
    arrays.array_shapes(min_dims=2, max_dims=2, max_side=50), arrays.array_shapes(min_dims=4, max_dims=4, max_side=6)
)
names = st.sampled_from(("unstructured", "4x1", "16x1", "16x4", "2:4", "3x2"))


def weight_for(name: str, shape: tuple[int, ...], sparsity: float, seed: int = 0) -> Any:
    rng = np.random.default_rng(seed)
    return sparse_weight(rng, shape, pattern_of(name), None if ":" in name else sparsity)


@few
@given(names, shapes, st.floats(0, 1))
def test_a_weight_comes_back(name: str, shape: tuple[int, ...], sparsity: float) -> None:
    weight = weight_for(name, shape, sparsity)
    packed = pack(weight, pattern_of(name))
    assert np.array_equal(unpack(packed), weight)
    assert packed.value.any(axis=(1, 2)).all(), "a block of zeros was stored"


@few
@given(names, shapes, st.floats(0, 1))
def test_int8_is_within_half_a_step(name: str, shape: tuple[int, ...], sparsity: float) -> None:
    weight = weight_for(name, shape, sparsity)
    packed = pack_int8(weight, pattern_of(name))
    assert packed.scale is not None
    steps = packed.scale.reshape(-1, *[1] * (weight.ndim - 1))
    assert (np.abs(unpack(packed) - weight) <= 0.5001 * steps).all()


@few
@given(shapes)
def test_signs_come_back(shape: tuple[int, ...]) -> None:
    weight = weight_for("unstructured", shape, 0)
    packed = pack_signs(weight)
    assert np.array_equal(np.sign(unpack_signs(packed)), np.where(weight >= 0, 1, -1))
    assert np.array_equal(pack_signs(unpack_signs(packed)).bits, packed.bits)
    assert packed.size_bytes == shape[0] * (4 * -(-weight[0].size // 32) + 4)


@few
@given(st.sets(st.integers(0, 5000)), st.integers(0, 300))
def test_positions_come_back_from_both_codings(given: set[int], beyond: int) -> None:
    at = np.array(sorted(given), np.int64)
    cells = max(given, default=0) + 1 + beyond
    for coding in ("mask", "gaps"):
        assert np.array_equal(decode(encode(at, cells, coding), cells, coding), at)


@few
@given(st.sets(st.integers(0, 5000), min_size=1), st.integers(0, 4999))
def test_a_gap_code_that_is_cut_is_refused_or_shorter(given: set[int], keep: int) -> None:
    """Never a position that was not there."""
    code = gaps_of(np.array(sorted(given), np.int64))
    try:
        found = decode(code[: keep % len(code)], 5001, "gaps")
    except FileError:
        return
    assert set(found.tolist()) < given


def test_sizes_are_those_of_the_file(tmp_path: Path) -> None:
    """The packed tensors are all that a file holds beside its header."""
    layers = {
        "dense-ish": pack(weight_for("16x1", (64, 96), 0.5), pattern_of("16x1")),
        "sparse": pack(weight_for("unstructured", (64, 96), 0.97), Unstructured()),
        "int8": pack_int8(weight_for("16x4", (40, 13, 3, 3), 0.8), pattern_of("16x4")),
        "signs": pack_signs(weight_for("unstructured", (10, 33), 0)),
    }
    assert layers["dense-ish"].coding == "mask"
    assert layers["sparse"].coding == "gaps"
    path = save_packed(layers, tmp_path / "a.safetensors")
    header = int.from_bytes(path.read_bytes()[:8], "little")
    assert path.stat().st_size - 8 - header == sum(each.size_bytes for each in layers.values())
    # At 90 % the gaps are smaller than a bit for each weight: five bytes for each that is left.
    packed = pack(weight_for("unstructured", (64, 96), 0.9), Unstructured())
    assert packed.size_bytes == 5 * len(packed.at) < 64 * 96 * 4 / 7.9
    assert packed.sparsity == pytest.approx(0.9, abs=1e-3)


@few
@given(names, shapes, st.floats(0, 1))
def test_a_file_gives_what_was_saved(tmp_path_factory: Any, name: str, shape: tuple[int, ...], sparsity: float) -> None:
    path = tmp_path_factory.getbasetemp() / "packed.safetensors"
    weight = weight_for(name, shape, sparsity)
    eight, signs = pack_int8(weight, pattern_of(name)), pack_signs(weight)
    save_packed({"layer.1/x": pack(weight, pattern_of(name)), "8": eight, "b": signs}, path)
    loaded = load_packed(path)
    assert np.array_equal(unpack(loaded["layer.1/x"]), weight)
    assert np.array_equal(unpack(loaded["8"]), unpack(eight))
    assert np.array_equal(unpack_signs(loaded["b"]), unpack_signs(signs))
    assert loaded["8"].pattern == pattern_of(name)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return save_packed({"fc": pack(weight_for("4x1", (24, 40), 0.8), pattern_of("4x1"))}, tmp_path / "p.safetensors")


@pytest.mark.fault
def test_57_every_flipped_byte_is_refused(file: Path) -> None:
    whole = file.read_bytes()
    for at in range(0, len(whole), 7):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :])
        with pytest.raises(FileError):
            load_packed(file)


@pytest.mark.fault
def test_56_truncated_files_are_refused(file: Path) -> None:
    whole = file.read_bytes()
    for length in (0, 7, 100, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(FileError, match="p.safetensors"):
            load_packed(file)
    with pytest.raises(FileError):
        load_packed(file.with_name("missing"))


def forged(file: Path, change: Any) -> None:
    """Rewritten with a right checksum: what is left are the checks of the content."""
    with safe_open(file, framework="numpy") as opened:
        tensors = {name: opened.get_tensor(name) for name in ("fc/value", "fc/at")}
        about = json.loads(opened.metadata()[KEY])
    about.pop("sha256")
    change(tensors, about)
    about["sha256"] = _digest(about, tensors)
    save_file(tensors, file, metadata={KEY: json.dumps(about)})


def cut_values(tensors: Any, _: Any) -> None:
    tensors["fc/value"] = tensors["fc/value"][:-1]


def cut_positions(tensors: Any, _: Any) -> None:
    tensors["fc/at"] = tensors["fc/at"][:-1]


def far_positions(tensors: Any, about: Any) -> None:
    """As many as before, beyond the end."""
    about["layers"]["fc"]["coding"] = "gaps"
    tensors["fc/at"] = np.full(len(tensors["fc/value"]), 200, np.uint8)


def repeated_positions(tensors: Any, about: Any) -> None:
    about["layers"]["fc"]["coding"] = "gaps"
    tensors["fc/at"] = np.zeros(len(tensors["fc/value"]), np.uint8)


def smaller_shape(_: Any, about: Any) -> None:
    about["layers"]["fc"]["shape"] = [8, 40]


def huge_shape(_: Any, about: Any) -> None:
    about["layers"]["fc"]["shape"] = [2**40, 2**40]


def no_numbers(_: Any, about: Any) -> None:
    about["layers"]["fc"]["shape"] = ["a", {}]


def other_pattern(_: Any, about: Any) -> None:
    about["layers"]["fc"]["pattern"] = "8x1"


def nan_value(tensors: Any, _: Any) -> None:
    tensors["fc/value"] = tensors["fc/value"] * np.float32("nan")


def doubles(tensors: Any, _: Any) -> None:
    tensors["fc/value"] = tensors["fc/value"].astype(np.float64)


def other_coding(_: Any, about: Any) -> None:
    about["layers"]["fc"]["coding"] = "zip"


def no_layers(_: Any, about: Any) -> None:
    about["layers"] = [1]


@pytest.mark.fault
@pytest.mark.parametrize(
    "change",
    [
        *(cut_values, cut_positions, far_positions, repeated_positions, smaller_shape, huge_shape, no_numbers),
        *(other_pattern, nan_value, doubles, other_coding, no_layers),
    ],
)
def test_57_content_that_cannot_be_is_refused(file: Path, change: Any) -> None:
    forged(file, lambda tensors, about: None)
    assert isinstance(load_packed(file)["fc"], Packed)
    forged(file, change)
    with pytest.raises(FileError, match="p.safetensors"):
        load_packed(file)


@pytest.mark.fault
def test_58_a_newer_format_says_upgrade(file: Path) -> None:
    forged(file, lambda _, about: about.update(format=2))
    with pytest.raises(FileError, match="upgrade"):
        load_packed(file)


def test_another_safetensors_file_is_refused(tmp_path: Path) -> None:
    save_file({"a": np.ones(3)}, tmp_path / "a")
    with pytest.raises(FileError, match="not a file of packed weights"):
        load_packed(tmp_path / "a")


@pytest.mark.fault
def test_19_weights_that_are_not_finite_are_refused() -> None:
    weight = np.ones((4, 4), np.float32)
    weight[1, 2] = np.inf
    for refuse in (lambda: pack(weight, Unstructured()), lambda: pack_signs(weight)):
        with pytest.raises(ModelError, match="NaN or infinity"):
            refuse()


def test_weights_that_cannot_be_packed() -> None:
    with pytest.raises(UsageError, match="float64"):
        pack(np.ones((4, 4)), Unstructured())  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="shape"):
        pack(np.ones(4, np.float32), Unstructured())
    with pytest.raises(UsageError, match="leave it dense"):
        pack(np.ones((1, 65_537), np.float32), Unstructured())
