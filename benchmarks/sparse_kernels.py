"""Packed sparse layers beside the best dense layer of ONNX Runtime, OpenVINO and torch (MKL, oneDNN); see sparse.py.

For each shape the fastest dense runtime is found, and every sparse layer is timed against it in turns, by CPU time, on
the same input, with a bias. int8 is beside the best of the same runtimes on the same layer with quantize and dequantize
nodes (unsigned activations, signed weights per output); quantizing the input is part of both. Zeros are placed at
random. Also: the sparsity from which on a pattern wins, and how much of what one core can do is reached: of its peak of
multiply-adds (those of kept weights), and of its bandwidth (kept weights, input and output, each moved once, against
reading as many bytes again and again).
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch
from onnx import TensorProto, helper, numpy_helper

from paretoprune.sparsity import kernels as K
from paretoprune.sparsity import mask_of, matrix_of, pack, pack_int8, pack_signs, pattern_of, weight_of
from paretoprune.sparsity.kernels.library import library
from paretoprune.targets import Comparison, Timing, compare_fresh

PATTERNS = ("unstructured", "4x1", "16x1")
SPARSITIES = (0.5, 0.8, 0.9)
LOW = (0.0, 0.1, 0.2, 0.3)
"""Where a pattern is looked for that already wins."""
GRID = K.Grid(0.03, 128)
INT8_PEAK = 2
"""Times the fp32 peak: vpmaddwd and vpaddd make 16 products where a multiply-add makes 8, and as many start a cycle."""
GOALS = {
    **{(pattern, s): g for pattern in ("4x1", "16x1") for s, g in ((0.5, 2.0), (0.8, 4.5), (0.9, 8.0))},
    **{("unstructured", 0.8): 1.8, ("unstructured", 0.9): 3.5},
    **{("int8 16x4", 0.5): 2.0, ("int8 16x4", 0.8): 3.5},
}
"""Times as fast as the best dense layer that is wanted; int8 over OpenVINO's int8."""

Array = Any
Make = Callable[[], Callable[[], Any]]


@dataclass(frozen=True)
class Shape:
    """`x`: of the input, `weight`: (N, K) or (O, I, kernel, kernel)."""

    name: str
    x: tuple[int, ...]
    weight: tuple[int, ...]
    padding: int = 0

    @property
    def linear(self) -> bool:
        return len(self.weight) == 2

    @property
    def y(self) -> tuple[int, ...]:
        return (self.x[0], self.weight[0], *self.x[2:])

    @property
    def macs(self) -> int:
        return int(np.prod(self.y) * np.prod(self.weight[1:]))


SHAPES = (
    Shape("linear 128x512x2048", (128, 512), (2048, 512)),
    Shape("linear 1x512x2048", (1, 512), (2048, 512)),
    Shape("1x1 conv 196x512x512", (1, 512, 14, 14), (512, 512, 1, 1)),
    Shape("1x1 conv 784x128x256", (1, 128, 28, 28), (256, 128, 1, 1)),
    Shape("3x3 conv 28x28x128x128", (1, 128, 28, 28), (128, 128, 3, 3), 1),
)


class Bench:
    """One shape: its input, its dense rivals, its sparse layers."""

    def __init__(self, shape: Shape, timing: Timing, wanted: str) -> None:
        rng = np.random.default_rng(0)
        self.shape, self.timing, self.set = shape, timing, wanted
        self.x = aligned(rng.standard_normal(shape.x).astype(np.float32))
        self.weight = (rng.standard_normal(shape.weight) / np.sqrt(np.prod(shape.weight[1:]))).astype(np.float32)
        self.bias = rng.standard_normal(shape.weight[0]).astype(np.float32)
        self.out = aligned(np.zeros(shape.y, np.float32))
        self.window = K.Window(padding=(shape.padding,) * 4)

    def sparse(self, pattern: str, sparsity: float) -> Array:
        """Scores at random: blocks fall where they would not for a trained network, evenly."""
        matrix = matrix_of(self.weight)
        mask = mask_of(pattern_of(pattern), np.random.default_rng(1).random(matrix.shape), sparsity)
        return weight_of((matrix * mask).astype(np.float32), self.shape.weight)

    def layer(self, pattern: str, sparsity: float) -> Make:
        packed, end = pack(self.sparse(pattern, sparsity), pattern_of(pattern)), K.End(self.bias)
        if self.shape.linear:
            return self._make(lambda: K.Linear(packed, end, instruction_set=self.set))
        return self._make(lambda: K.Conv(packed, self.window, end, instruction_set=self.set))

    def int8(self, sparsity: float) -> Make:
        packed, end = pack_int8(self.sparse("16x4", sparsity), pattern_of("16x4")), K.End(self.bias)
        if self.shape.linear:
            return self._make(lambda: K.Int8Linear(packed, GRID, end=end, instruction_set=self.set))
        return self._make(lambda: K.Int8Conv(packed, GRID, None, self.window, end, instruction_set=self.set))

    def binary(self, binarized: bool) -> Make:
        packed, end = pack_signs(self.weight), K.End(self.bias)
        if self.shape.linear:
            return self._make(lambda: K.BinaryLinear(packed, end, binarized, instruction_set=self.set))
        return self._make(lambda: K.BinaryConv(packed, self.window, end, instruction_set=self.set))

    def _make(self, build: Callable[[], Any]) -> Make:
        def make() -> Callable[[], Any]:
            layer = build()
            return lambda: layer(self.x, None, self.out)

        return make

    def dense(self) -> dict[str, Make]:
        model = onnx_layer(self.shape, self.weight, self.bias, None)
        return {"onnxruntime": self._ort(model), "openvino": self._openvino(model), "torch": self._torch()}

    def dense_int8(self) -> dict[str, Make]:
        model = onnx_layer(self.shape, self.weight, self.bias, GRID)
        return {"onnxruntime int8": self._ort(model), "openvino int8": self._openvino(model)}

    def _ort(self, model: bytes) -> Make:
        def make() -> Callable[[], Any]:
            options = ort.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
            binding = session.io_binding()
            binding.bind_cpu_input("x", self.x)
            binding.bind_ortvalue_output("y", ort.OrtValue.ortvalue_from_shape_and_type(self.shape.y, np.float32))
            return lambda: session.run_with_iobinding(binding)

        return make

    def _openvino(self, model: bytes) -> Make:
        import openvino as ov

        core = ov.Core()
        hints = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}

        def make() -> Callable[[], Any]:
            request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
            request.set_input_tensor(ov.Tensor(self.x, shared_memory=True))
            return request.infer

        return make

    def _torch(self) -> Make:
        x, weight, bias = (torch.from_numpy(each) for each in (self.x, self.weight, self.bias))

        def call() -> Any:
            with torch.inference_mode():
                if self.shape.linear:
                    return torch.nn.functional.linear(x, weight, bias)
                return torch.nn.functional.conv2d(x, weight, bias, padding=self.shape.padding)

        return lambda: call

    def best(self, rivals: dict[str, Make]) -> tuple[str, dict[str, float]]:
        """The fastest, and the milliseconds of each; all against the first, in turns."""
        first = next(iter(rivals))
        times = {}
        for name, make in rivals.items():
            pair = compare_fresh(rivals[first], make, self.timing)
            times[name] = pair.b.latency_ms.value if name == first else times[first] / pair.ratio.value
        return min(times, key=times.__getitem__), times


def onnx_layer(shape: Shape, weight: Array, bias: Array, grid: K.Grid | None) -> bytes:
    """Gemm or Conv with a bias; with quantize and dequantize nodes around its operands if `grid` is given."""
    constants, nodes, x, w = {"b": bias}, [], "x", "w"
    if grid is None:
        constants["w"] = weight
    else:
        packed = pack_int8(weight, pattern_of("16x4"))
        assert packed.scale is not None
        steps = packed.scale.reshape(-1, *[1] * (weight.ndim - 1))
        constants |= {"w8": np.rint(weight / steps).astype(np.int8), "ws": packed.scale}
        constants |= {"wz": np.zeros(len(packed.scale), np.int8)}
        constants |= {"s": np.float32(grid.scale), "z": np.uint8(grid.zero)}
        nodes += [
            helper.make_node("QuantizeLinear", ["x", "s", "z"], ["xq"]),
            helper.make_node("DequantizeLinear", ["xq", "s", "z"], ["xd"]),
            helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=0),
        ]
        x = "xd"
    if shape.linear:
        nodes.append(helper.make_node("Gemm", [x, w, "b"], ["y"], transB=1))
    else:
        nodes.append(helper.make_node("Conv", [x, w, "b"], ["y"], pads=[shape.padding] * 4))
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape.x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape.y)],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    serialized: bytes = model.SerializeToString()
    return serialized


def measure(bench: Bench, peak: float) -> list[dict[str, Any]]:
    """One row per layer: `speedup` over the best dense one, `peak`: share of the roof."""
    rows = []
    dense = bench.dense()
    best, times = bench.best(dense)
    near = roof(bench, times[best], 0, peak)
    rows.append({"layer": f"dense ({best})", "ms": times[best], "all_ms": times} | near)
    show(rows[-1])
    crossing: dict[str, list[tuple[float, float]]] = {}
    for pattern in PATTERNS:
        for sparsity in (*LOW, *SPARSITIES):
            pair = compare_fresh(dense[best], bench.layer(pattern, sparsity), bench.timing)
            crossing.setdefault(pattern, []).append((sparsity, pair.ratio.value))
            if sparsity in SPARSITIES:
                near = roof(bench, pair.b.latency_ms.value, sparsity, peak)
                rows.append(row(f"{pattern} {sparsity:.0%}", pair) | near)
                rows[-1]["goal"] = GOALS.get((pattern, sparsity))
                show(rows[-1])
        rows.append({"layer": f"{pattern} wins from", "break_even": break_even(crossing[pattern])})
        show(rows[-1])
    rivals = bench.dense_int8()
    best8, times8 = bench.best(rivals)
    ratio = times[best] / times8[best8]
    near = roof(bench, times8[best8], 0, INT8_PEAK * peak, 1)
    rows.append({"layer": f"dense ({best8})", "ms": times8[best8], "all_ms": times8, "speedup": ratio} | near)
    show(rows[-1])
    for sparsity in SPARSITIES:
        pair = compare_fresh(rivals[best8], bench.int8(sparsity), bench.timing)
        near = roof(bench, pair.b.latency_ms.value, sparsity, INT8_PEAK * peak, 1)
        rows.append(row(f"int8 16x4 {sparsity:.0%}", pair) | near | {"over": best8})
        rows[-1]["goal"] = GOALS.get(("int8 16x4", sparsity))
        show(rows[-1])
    for binarized in (False, True)[: 1 + bench.shape.linear]:
        pair = compare_fresh(dense[best], bench.binary(binarized), bench.timing)
        rows.append(row("binary weights" + " and inputs" * binarized, pair))
        show(rows[-1])
    return [{"shape": bench.shape.name, **each} for each in rows]


def row(name: str, pair: Comparison) -> dict[str, Any]:
    low, value, high = pair.ratio.low, pair.ratio.value, pair.ratio.high
    ms = pair.b.latency_ms.value
    return {"layer": name, "ms": ms, "speedup": value, "low": low, "high": high}


def break_even(points: list[tuple[float, float]]) -> float | None:
    """The sparsity at which the speed-up passes 1, between two measured ones; 0 if it wins without a zero."""
    if points[0][1] >= 1:
        return 0.0
    for (s0, r0), (s1, r1) in itertools.pairwise(points):
        if r0 < 1 <= r1:
            return s0 + (s1 - s0) * (1 / r0 - 1) / (1 / r0 - 1 / r1)
    return None


def roof(bench: Bench, ms: float, sparsity: float, peak: float, weight_bytes: int = 4) -> dict[str, float]:
    size = int(bench.weight.size * (1 - sparsity)) * weight_bytes + bench.x.nbytes + bench.out.nbytes
    return {
        "of_peak": bench.shape.macs * (1 - sparsity) / ms / 1e6 / peak,
        "of_bandwidth": size / ms / 1e6 / bandwidth(bench.set, size),
    }


def peak_of(wanted: str) -> float:
    """Milliard multiply-adds a second, the best of ten."""
    call = library(wanted).pp_peak
    call.restype = ctypes.c_int64
    return max(timed(lambda: call(ctypes.c_int64(200_000))) for _ in range(10))


def bandwidth(wanted: str, size: int) -> float:
    """Milliard bytes a second of reading `size` bytes again and again, the best of ten."""
    call, data = library(wanted).pp_read, aligned(np.ones(size // 4, np.float32))
    call.restype = ctypes.c_float
    again = max(1, 4_000_000 // max(size, 1))

    def read() -> int:
        for _ in range(again):
            call(ctypes.c_void_p(data.ctypes.data), ctypes.c_int64(data.size))
        return again * data.nbytes

    return max(timed(read) for _ in range(10))


def timed(work: Callable[[], int]) -> float:
    start = time.process_time_ns()
    done = work()
    return done / (time.process_time_ns() - start)


def aligned(array: Array) -> Array:
    whole = np.zeros(array.nbytes + 64, np.uint8)
    start = -whole.ctypes.data % 64
    view = whole[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def show(each: dict[str, Any]) -> None:
    if "break_even" in each:
        at = each["break_even"]
        print(f"  {each['layer']:<28}{'never' if at is None else f'{at:.0%}'}", flush=True)
        return
    text = f"  {each['layer']:<28}{each['ms']:>9.4f} ms"
    if "speedup" in each:
        text += f"{each['speedup']:>8.2f}x"
    if "low" in each:
        text += f"  [{each['low']:.2f}, {each['high']:.2f}]"
    if each.get("of_peak") is not None:
        text += f"  {each['of_peak']:.0%} of peak, {each['of_bandwidth']:.0%} of bandwidth"
    if each.get("goal"):
        text += f"  goal {each['goal']:g}x {'met' if each['speedup'] >= each['goal'] else 'MISSED'}"
    print(text, flush=True)


def layers(wanted: str, only: Sequence[str] | None = None, pairs: int = 20) -> Iterator[dict[str, Any]]:
    """Rows of every shape whose name contains one of `only`."""
    timing = Timing(pairs=pairs, max_pairs=2 * pairs, max_cpu_s=3, margin=0.1)
    peak = peak_of(wanted)
    for shape in SHAPES:
        if not only or any(part in shape.name for part in only):
            print(shape.name)
            yield from measure(Bench(shape, timing, wanted), peak)


def machine(wanted: str) -> dict[str, Any]:
    return {"processor": processor(), "instruction_set": wanted, "peak_gmacs": peak_of(wanted)}


def processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=Path(__file__).parent).stdout.strip()
