"""What the layers refuse, what they keep, and how the instruction set is chosen."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from paretoprune.core.errors import DataError, TargetError, UsageError
from paretoprune.sparsity import Unstructured, load_packed, pack, pack_int8, pack_signs, pattern_of, save_packed
from paretoprune.sparsity.kernels import (
    BinaryConv,
    BinaryLinear,
    Conv,
    End,
    Grid,
    Int8Conv,
    Int8Linear,
    Linear,
    Window,
    available,
    library,
)
from paretoprune.sparsity.kernels.library import SETS, UNTRIED, VARIABLE, choose
from sparse_reference import close, conv, linear, sparse_weight

pytestmark = pytest.mark.skipif(not available(), reason="no compiler was there when the package was installed")


def weight(shape: tuple[int, ...], sparsity: float = 0.7, pattern: str = "4x1") -> Any:
    return sparse_weight(np.random.default_rng(0), shape, pattern_of(pattern), sparsity)


def noise(*shape: int) -> Any:
    return np.random.default_rng(1).standard_normal(shape).astype(np.float32)


@pytest.fixture
def layer() -> Linear:
    return Linear(pack(weight((24, 40)), pattern_of("4x1")))


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.ones((3, 40)), "float64"),
        (np.ones((3, 40), np.float16), "float16"),
        (np.ones((3, 41), np.float32), r"\(3, 41\)"),
        (np.ones((), np.float32), r"expected \(…, 40\)"),
        (np.ones((3, 80), np.float32)[:, ::2], "contiguous"),
        (np.asfortranarray(np.ones((3, 40), np.float32)), "contiguous"),
    ],
)
def test_inputs_of_another_kind_are_refused(layer: Linear, x: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        layer(x)


def test_images_of_another_kind_are_refused() -> None:
    layer = Conv(pack(weight((8, 6, 3, 3)), pattern_of("4x1")))
    for x, words in (
        (noise(1, 5, 8, 8), "expected"),
        (noise(6, 8, 8), "expected"),
        (noise(1, 6, 2, 8), "smaller than the kernel"),
        (noise(1, 8, 8, 6).transpose(0, 3, 1, 2), "contiguous"),  # channels last
    ):
        with pytest.raises(DataError, match=words):
            layer(x)


def test_outputs_and_residuals_are_checked(layer: Linear) -> None:
    x = noise(3, 40)
    for name, given in (("out", np.empty((3, 25), np.float32)), ("residual", np.empty((24, 3), np.float32).T)):
        with pytest.raises(DataError, match=name):
            layer(x, **{name: given})
    own = np.empty((3, 24), np.float32)
    with pytest.raises(DataError, match="out lies over residual"):
        layer(x, own, own)
    out = np.empty((3, 24), np.float32)
    assert layer(x, own, out) is out


def test_other_arguments_are_checked() -> None:
    packed = pack(weight((8, 8)), pattern_of("4x1"))
    for make, words in (
        (lambda: Linear(packed, End(np.ones(7, np.float32))), "a bias"),
        (lambda: Linear(packed, End(np.full(8, np.nan, np.float32))), "not finite"),
        (lambda: Linear(packed, End(activation="tanh")), "'tanh'"),
        (lambda: Linear(packed, threads=0), "threads=0"),
        (lambda: Linear(packed, instruction_set="mmx"), "expected one of portable"),
        (lambda: Conv(packed), "expected"),
        (lambda: Window(stride=(0, 1)), "stride"),
        (lambda: Grid(0.0), "scale=0.0"),
        (lambda: Grid(1.0, 256), "zero=256"),
        (lambda: Int8Linear(packed, Grid(1.0)), "pack_int8"),
        (lambda: Linear(pack_int8(weight((8, 8)), Unstructured())), "Int8"),
    ):
        with pytest.raises(UsageError, match=words):
            make()


@pytest.mark.parametrize("pattern", ["unstructured", "4x1", "16x1"])
@pytest.mark.parametrize("rows", [0, 1, 9])
def test_all_zero_and_empty_rows(pattern: str, rows: int) -> None:
    bias = noise(37)
    layer = Linear(pack(np.zeros((37, 20), np.float32), pattern_of(pattern)), End(bias))
    assert np.array_equal(layer(noise(rows, 20)), np.broadcast_to(bias, (rows, 37)))
    half = weight((37, 20), 0.5, "1x1")
    half[3:30] = 0
    x = noise(rows, 20)
    if rows:
        close(Linear(pack(half, pattern_of(pattern)))(x), linear(x, half))


def test_inputs_that_are_not_finite_reach_every_output_that_uses_them() -> None:
    """And no other: a removed weight is no 0 × NaN."""
    matrix = np.zeros((8, 5), np.float32)
    matrix[2, 1] = matrix[5, 3] = 1
    for activation in ("none", "relu", "gelu"):
        for rows in (1, 20):
            x = noise(rows, 5)
            x[:, 1], x[:, 4] = np.nan, np.inf
            y = Linear(pack(matrix, Unstructured()), End(activation=activation))(x)
            assert np.isnan(y[:, 2]).all()
            assert np.isfinite(np.delete(y, 2, axis=1)).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 29, -1])
def test_int8_refuses_what_8_bits_cannot_hold(bad: float, at: int) -> None:
    x = noise(1, 13, 6, 5)
    eight = pack_int8(weight((9, 13, 1, 1), pattern="16x4"), pattern_of("16x4"))
    layer = Int8Conv(eight, Grid(0.1))
    layer(x)
    x.reshape(-1)[at] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        layer(x)
    with pytest.raises(DataError, match="NaN or infinity"):
        Int8Linear(pack_int8(noise(4, 390), pattern_of("16x4")), Grid(0.1))(x.reshape(1, -1))


def test_a_file_is_laid_out_for_the_processor_that_loads_it(tmp_path: Path) -> None:
    """Its content does not say on what it was made: every set takes it, and gives the same."""
    dense = weight((32, 24), pattern="16x4")
    path = save_packed({"fc": pack_int8(dense, pattern_of("16x4"))}, tmp_path / "packed.safetensors")
    x, grid, loaded = noise(5, 24), Grid(0.03, 128), load_packed(path)["fc"]
    results = [Int8Linear(loaded, grid, instruction_set=name)(x) for name in available()]
    assert all(np.array_equal(each, results[0]) for each in results)
    for name in SETS:
        assert name.encode() not in path.read_bytes()


def test_the_same_layer_in_many_threads() -> None:
    dense = weight((40, 60))
    layer = Linear(pack(dense, pattern_of("4x1")), threads=3)
    given = [noise(n + 8, 60) for n in range(8)]
    got: dict[int, Any] = {}

    def work(i: int) -> None:
        for _ in range(20):
            got[i] = layer(given[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i, x in enumerate(given):
        close(got[i], linear(x, dense))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_computes_with_threads_of_its_own() -> None:
    """In a process of its own: a fork of the test runner would carry its threads along."""
    program = """
import os, numpy as np
from paretoprune.sparsity import pack, pattern_of
from paretoprune.sparsity.kernels import Linear
w = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
layer, x = Linear(pack(w, pattern_of("4x1")), threads=3), np.ones((64, 64), np.float32)
y = layer(x)
child = os.fork()
if child == 0:
    os._exit(0 if np.array_equal(layer(x), y) else 1)
assert os.waitpid(child, 0)[1] == 0
"""
    result = subprocess.run([sys.executable, "-c", program], timeout=60, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_the_call_allocates_only_its_result() -> None:
    """Same size again: the same memory to work in."""
    layer, x = Conv(pack(weight((8, 6, 3, 3)), pattern_of("4x1")), Window(padding=(1, 1, 1, 1))), noise(2, 6, 20, 20)
    y = layer(x)
    work = layer._work[6, 20, 20]
    close(layer(x, out=y), conv(x, weight((8, 6, 3, 3)), Window(padding=(1, 1, 1, 1))))
    assert layer._work[6, 20, 20] is work


@pytest.mark.parametrize("name", available())
def test_layers_say_what_they_run_on(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    packed, signs = pack(weight((8, 8)), pattern_of("4x1")), pack_signs(weight((8, 8, 1, 1)))
    assert Linear(packed).instruction_set == [name for name in available() if name not in UNTRIED][-1]
    assert Linear(packed, instruction_set=name).instruction_set == name
    monkeypatch.setenv(VARIABLE, name)
    assert Linear(packed).instruction_set == BinaryConv(signs).instruction_set == name
    assert BinaryLinear(pack_signs(weight((8, 8))), instruction_set="portable").instruction_set == "portable"


def test_a_set_that_the_environment_names_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(VARIABLE, "sse9")
    with pytest.raises(UsageError, match="'sse9'.*expected one of portable"):
        choose()


@pytest.mark.skipif("avx512-vnni" in available(), reason="this processor has everything")
def test_a_set_that_the_processor_lacks_is_refused() -> None:
    with pytest.raises(TargetError, match="avx512-vnni.*(lacks|not compiled)"):
        choose("avx512-vnni")


@pytest.mark.fault
def test_without_compiled_kernels_the_error_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FOLDER", tmp_path)
    assert available() == ()
    with pytest.raises(TargetError, match=r"not compiled when paretoprune was installed; install a C\+\+17 compiler"):
        Linear(pack(weight((8, 8)), pattern_of("4x1")))
    (tmp_path / "_portable.so").write_bytes(b"no library")
    library._open.cache_clear()
    try:
        with pytest.raises(TargetError, match="cannot be loaded"):
            choose()
    finally:
        library._open.cache_clear()


def test_nothing_heavy_is_imported() -> None:
    program = "import sys, paretoprune.sparsity.kernels; print({'torch', 'onnx', 'onnxruntime'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
