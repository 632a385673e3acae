"""What each clean-up of an exported graph, and each cheaper activation, is worth on each runtime.

    PARETOPRUNE_DATA=… .venv/bin/python benchmarks/cleanup.py [--pairs N] [--max-cpu-s S] [--only passes|activations]

Passes: a file without one of them (or without any) against the file with all, in turns. Activations: the network with
all SiLU, hard-swish and GELU replaced against the network itself. Ratios are "baseline over this", above 1 is faster.
EfficientNet-B0 and MobileNetV3-Small have random weights, for time alone; the accuracy is of a network of inverted
residual blocks with squeeze-and-excitation on the digits (scikit-learn): as exchanged, after reconstruction, and after
8 epochs of distillation. Writes benchmarks/results/cleanup.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.graph import Example
from paretoprune.core.plan import Plan
from paretoprune.core.protocols import Target
from paretoprune.targets import Comparison, Timing, compare_files, find_target, size_bytes
from paretoprune.targets.clean import PASSES
from paretoprune.targets.feeds import feed_of

sys.path.insert(0, str(Path(__file__).parent))

ROOT = Path(__file__).parent.parent
RESULT = ROOT / "benchmarks" / "results" / "cleanup.json"
RUNTIMES = tuple(name for name in ("onnxruntime", "openvino") if importlib.util.find_spec(name))
WITHOUT: Mapping[str, tuple[str, ...]] = {
    **{f"without {name}": tuple(p for p in PASSES if p != name) for name in PASSES},
    "without any": (),
}
Batches = list[tuple[Tensor, Tensor]]
Row = dict[str, Any]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--pairs", type=int, default=20)
    options.add_argument("--max-cpu-s", type=float, default=1.5)
    options.add_argument("--only", choices=("passes", "activations"))
    options.add_argument("--networks", nargs="*", help="names of networks; all by default")
    given = options.parse_args()
    timing = Timing(pairs=given.pairs, max_cpu_s=given.max_cpu_s)
    rows: list[Row] = json.loads(RESULT.read_text())["rows"] if RESULT.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        for name, build in NETWORKS.items():
            if given.networks and name not in given.networks:
                continue
            part = "activations" if name in ACTIVATED else "passes"
            if given.only in (None, part):
                torch.manual_seed(0)
                for found in (activations if name in ACTIVATED else passes)(name, *build(), Path(folder), timing):
                    rows = [r for r in rows if key(r) != key(found)] + [found]
                    write(rows)


def key(found: Row) -> tuple[str, ...]:
    return found["network"], found["runtime"], found["what"]


# -- what is compared --------------------------------------------------------------------------------------------------


def passes(name: str, model: nn.Module, example: Tensor, folder: Path, timing: Timing) -> Iterator[Row]:
    for runtime in RUNTIMES:
        target = find_target(runtime)
        whole = pp.export(model, example, folder / f"{name}.onnx", target)
        for what, kept in WITHOUT.items():
            file = pp.export(model, example, folder / "other.onnx", target, cleanup=kept)
            yield row(name, runtime, what, whole, file, compared(target, whole, file, example, timing))


def activations(name: str, model: nn.Module, example: Tensor, folder: Path, timing: Timing) -> Iterator[Row]:
    data = digits() if name == "digits" else None
    calibration = None if data is None else data.train
    traced = pp.trace(model, example)
    swapped = {
        cheaper: graphs.cut(traced, Plan(activations={"*": cheaper})).program.module
        if calibration is None
        else pp.prune(model, example, activations={"*": cheaper}, calibration=calibration)
        for cheaper in (("relu",) if name == "MobileNetV3-Small" else ("hardswish", "relu"))  # it has hard-swish itself
    }
    told = {} if data is None else {c: accuracies(model, example, c, pruned, data) for c, pruned in swapped.items()}
    for runtime in RUNTIMES:
        target = find_target(runtime)
        own = pp.export(model, example, folder / f"{name}.onnx", target)
        for cheaper, pruned in swapped.items():
            file = pp.export(pruned, example, folder / "other.onnx", target)
            found = row(name, runtime, cheaper, own, file, compared(target, own, file, example, timing))
            yield found | told.get(cheaper, {})


def compared(target: Target, baseline: Path, file: Path, example: Tensor, timing: Timing) -> Comparison:
    return compare_files(target, baseline, file, feed_of(Example.of(example[:1])), timing)


def row(network: str, runtime: str, what: str, baseline: Path, file: Path, pair: Comparison) -> Row:
    found = {
        "network": network,
        "runtime": runtime,
        "what": what,
        "ratio": pair.ratio.to_json(),
        "latency_ms": pair.b.latency_ms.to_json(),
        "size_bytes": [size_bytes(baseline).value, size_bytes(file).value],
    }
    ratio = pair.ratio
    print(f"{network:<18}{runtime:<13}{what:<22}{ratio.value:6.3f} [{ratio.low:.3f} to {ratio.high:.3f}]", flush=True)
    return found


# -- accuracy ----------------------------------------------------------------------------------------------------------


def accuracies(model: nn.Module, example: Tensor, cheaper: str, pruned: pp.Pruned, data: pp.Data) -> Row:
    bare = pp.prune(model, example, activations={"*": cheaper})
    trained = pp.distill(pruned, model, data.train, epochs=8, lr=0.02)
    found = {
        "accuracy_original": accuracy(model, data.test),
        "accuracy_exchanged": accuracy(bare.model, data.test),
        "accuracy_reconstructed": accuracy(pruned.model, data.test),
        "accuracy_distilled": accuracy(trained.model, data.test),
        "test_samples": sum(len(y) for _, y in data.test),
    }
    print(cheaper, found, flush=True)
    return found


def accuracy(model: nn.Module, batches: Any) -> float:
    with torch.no_grad():
        return sum(int((model(x).argmax(1) == y).sum()) for x, y in batches) / sum(len(y) for _, y in batches)


def digits() -> pp.Data:
    images, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(images).float().reshape(-1, 1, 8, 8) / 8 - 1
    y = torch.from_numpy(labels)
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    sets: list[Batches] = [
        list(zip(x[part].split(100), y[part].split(100), strict=True)) for part in order.split([1000, 297, 500])
    ]
    return pp.Data(*sets)


# -- networks ----------------------------------------------------------------------------------------------------------


class Inverted(nn.Module):
    """As in EfficientNet (Tan and Le 2019): expand, depthwise, squeeze and excite, project."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.expand = nn.Sequential(nn.Conv2d(width, hidden, 1, bias=False), nn.BatchNorm2d(hidden), nn.SiLU())
        self.depth = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        self.norm, self.act = nn.BatchNorm2d(hidden), nn.SiLU()
        self.squeeze, self.excite = nn.Conv2d(hidden, 8, 1), nn.Conv2d(8, hidden, 1)
        self.project = nn.Sequential(nn.Conv2d(hidden, width, 1, bias=False), nn.BatchNorm2d(width))

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.norm(self.depth(self.expand(x))))
        y = y * torch.sigmoid(self.excite(self.act(self.squeeze(y.mean((2, 3), keepdim=True)))))
        result: Tensor = x + self.project(y)
        return result


class Small(nn.Module):
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.SiLU())
        self.blocks = nn.Sequential(*(Inverted(width, 4 * width) for _ in range(3)))
        self.head = nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(self.blocks(self.stem(x)).mean((2, 3)))
        return result


def small() -> tuple[nn.Module, Tensor]:
    model, data = Small().train(), digits()
    optimiser = torch.optim.Adam(model.parameters(), lr=0.01)
    for x, y in list(data.train) * 15:
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimiser.step()
    return model.eval(), data.train[0][0][:2]


def known(name: str) -> tuple[nn.Module, Tensor]:
    from runtime_networks import vision

    network = vision(name)
    return network.model, network.example


def resnet20() -> tuple[nn.Module, Tensor]:
    from runtime_data import resnet20 as trained

    judged = trained()
    return judged.model, judged.example


NETWORKS: Mapping[str, Callable[[], tuple[nn.Module, Tensor]]] = {
    "ResNet-20": resnet20,
    "ResNet-18": lambda: known("resnet18"),
    "MobileNetV2": lambda: known("mobilenet_v2"),
    "digits": small,
    "MobileNetV3-Small": lambda: known("mobilenet_v3_small"),
    "EfficientNet-B0": lambda: known("efficientnet_b0"),
}
ACTIVATED = ("digits", "MobileNetV3-Small", "EfficientNet-B0")


def write(rows: list[Row]) -> None:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    result = {
        "command": "benchmarks/cleanup.py",
        "commit": subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT).stdout.strip(),
        "machine": {name: dict(find_target(name).fingerprint()) for name in RUNTIMES},
        "rows": rows,
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
