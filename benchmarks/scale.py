"""What tracing, planning and pruning cost on large networks: seconds against nodes, and memory against weights.

    .venv/bin/python benchmarks/scale.py [--part nodes|memory|llama] [--only NAME]

Three parts, each network in a process of its own with one thread and random weights:

nodes   CPU seconds of finding the axes (capture aside) against nodes, for ResNet-18 to -152, BERT shapes and Llama
        shapes of 2 to 64 layers. Widths are small: the cost is one of nodes. The figure is the exponent of a power law
        fitted to each family (1: linear), and the largest seconds for 1,000 nodes over the smallest.
memory  peak resident bytes of `pp.prune` (capture, check, surgery, rebuild) over the bytes of the weights, both counted
        from before the network was made. 2 is the promise, beside one batch and what a small network needs too.
llama   a Llama of 1.24 billion parameters in bf16 with grouped queries: CPU and wall seconds to trace and to plan half
        of every inner axis, and peak bytes above its weights.

Writes benchmarks/results/scale.json.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune import criteria
from paretoprune import graph as graphs
from paretoprune.graph import traced as traced_module
from paretoprune.pipeline import choose
from paretoprune.pipeline.prune import score
from paretoprune.targets.fingerprint import machine_facts
from paretoprune.tasks import task_of

RESULT = Path(__file__).parent / "results" / "scale.json"
MARK = "scale-row: "
Built = tuple[nn.Module, Any]


# -- networks ----------------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A bottleneck of ResNet, or a basic block."""

    def __init__(self, into: int, out: int, stride: int, expansion: int):
        super().__init__()
        mid = out // expansion
        kernels = (1, 3, 1) if expansion > 1 else (3, 3)
        sizes = (into, mid, mid, out) if expansion > 1 else (into, out, out)
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            step = stride if kernel == 3 and i < 2 and stride > 1 and not any(_stride(m) > 1 for m in layers) else 1
            layers += [
                nn.Conv2d(sizes[i], sizes[i + 1], kernel, step, kernel // 2, bias=False),
                nn.BatchNorm2d(sizes[i + 1]),
                nn.ReLU(),
            ]
        self.branch = nn.Sequential(*layers[:-1])
        same = stride == 1 and into == out
        self.shortcut = nn.Identity() if same else nn.Sequential(nn.Conv2d(into, out, 1, stride), nn.BatchNorm2d(out))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


def _stride(module: nn.Module) -> int:
    return module.stride[0] if isinstance(module, nn.Conv2d) else 1


def resnet(depth: int) -> Built:
    """The depths of He et al. 2016, table 1, at a sixteenth of the width."""
    counts = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}[depth]
    expansion = 4 if depth >= 50 else 1
    layers: list[nn.Module] = [nn.Conv2d(3, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    into = 8
    for stage, count in enumerate(counts):
        out = 8 * expansion * 2**stage
        for i in range(count):
            layers.append(Residual(into, out, 2 if stage and not i else 1, expansion))
            into = out
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(into, 10)), torch.randn(2, 3, 32, 32)


def operators() -> None:
    """transformers imports torchvision where it is installed, whose wheels need these beside a CPU torch."""
    if importlib.util.find_spec("torchvision"):
        from zoo.networks.entry import torchvision_operators

        torchvision_operators()


def bert(layers: int, hidden: int = 64, heads: int = 4) -> Built:
    operators()
    from transformers import BertConfig, BertModel

    config = BertConfig(
        vocab_size=1000,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        intermediate_size=4 * hidden,
    )
    return BertModel(config), {"input_ids": torch.randint(0, 1000, (2, 16))}


def llama(layers: int, **sizes: Any) -> Built:
    operators()
    from transformers import LlamaConfig, LlamaForCausalLM

    small = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 8, "num_key_value_heads": 2}
    small["vocab_size"] = 1000
    model = LlamaForCausalLM(LlamaConfig(num_hidden_layers=layers, use_cache=False, **{**small, **sizes}))
    return model, {"input_ids": torch.randint(0, 1000, (2, 16))}


def billion() -> Built:
    """The shapes of Llama 3.2 1B (Meta 2024, model card and config.json): 1.24 billion parameters."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        return llama(
            16,
            vocab_size=128256,
            hidden_size=2048,
            intermediate_size=8192,
            num_attention_heads=32,
            num_key_value_heads=8,
            head_dim=64,
            tie_word_embeddings=True,
        )
    finally:
        torch.set_default_dtype(before)


def vgg() -> Built:
    """VGG-16's linear layers, which hold nine tenths of it (Simonyan and Zisserman 2015)."""
    convolutions = [nn.Conv2d(3, 64, 3, 2, 1), nn.ReLU(), nn.Conv2d(64, 512, 3, 2, 1), nn.ReLU(), nn.MaxPool2d(2)]
    linears = [nn.Linear(512 * 49, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(7), nn.Flatten(), *linears), torch.randn(2, 3, 64, 64)


def linears() -> Built:
    """117 MB, for the quick test."""
    layers = [nn.Linear(2048, 4096), nn.ReLU(), nn.Linear(4096, 4096), nn.ReLU(), nn.Linear(4096, 1000)]
    return nn.Sequential(*layers), torch.randn(2, 2048)


NODES: dict[str, Callable[[], Built]] = {
    **{f"resnet-{d}": lambda d=d: resnet(d) for d in (18, 34, 50, 101, 152)},  # type: ignore[misc]
    **{f"bert-{n}": lambda n=n: bert(n) for n in (3, 6, 12, 24)},  # type: ignore[misc]
    **{f"llama-{n}": lambda n=n: llama(n) for n in (2, 4, 8, 16, 32, 64)},  # type: ignore[misc]
}
MEMORY: dict[str, Callable[[], Built]] = {
    "three linears": linears,
    "vgg-16 linears": vgg,
    "bert-base": lambda: bert(12, 768, 12),
    "llama 160 M": lambda: llama(
        12, hidden_size=768, intermediate_size=3072, num_attention_heads=12, num_key_value_heads=4, vocab_size=32000
    ),
}
LLAMA = {"llama 1.24 B": billion}


# -- what is measured --------------------------------------------------------------------------------------------------


def nodes(make: Callable[[], Built]) -> dict[str, Any]:
    model, example = make()
    capture = traced_module.capture
    spent: list[float] = []

    def timed(*args: Any) -> Any:
        started = time.process_time()
        try:
            return capture(*args)
        finally:
            spent.append(time.process_time() - started)

    traced_module.capture = timed  # type: ignore[assignment]
    seconds = []
    for _ in range(3):
        started = time.process_time()
        graph = graphs.trace(model.eval(), example)
        seconds.append(time.process_time() - started - spent[-1])
    return {
        "nodes": len(graph.captured.graph.nodes),
        "axes": len(graph.axes),
        "axes_cpu_s": seconds,
        "capture_cpu_s": spent,
    }


def memory(make: Callable[[], Built]) -> dict[str, Any]:
    warm_up()
    reset_peak()
    before = resident()
    model, example = make()
    weights = bytes_of(model)
    built = resident() - before
    started = time.process_time()
    pruned = pp.prune(model.eval(), example, ratio=0.5)
    return {
        "weights_bytes": weights,
        "built_bytes": built,
        "peak_bytes": peak() - before,
        "pruned_bytes": bytes_of(pruned.model),
        "output": "class" if type(pruned.model) is type(model) else "graph",
        "cpu_s": time.process_time() - started,
    }


def planned(make: Callable[[], Built]) -> dict[str, Any]:
    warm_up()
    before = resident()
    model, example = make()
    reset_peak()
    cpu, wall = time.process_time(), time.perf_counter()
    graph = graphs.trace(model.eval(), example)
    traced = time.process_time() - cpu, time.perf_counter() - wall
    axes = choose.chosen_axes(graph, "inner", ())
    scores = score(graph, axes, criteria.criterion_of("magnitude"), task_of("classification"), None)
    plan = choose.plan_of(graph, choose.widths_by_ratio(axes, 0.5, 1, 1), choose.removal_order(scores))
    total = time.process_time() - cpu, time.perf_counter() - wall
    weights = bytes_of(model)
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "nodes": len(graph.captured.graph.nodes),
        "axes": len(graph.axes),
        "planned_axes": len(plan.kept),
        "weights_bytes": weights,
        "above_weights_bytes": peak() - before - weights,
        "trace_cpu_s": traced[0],
        "trace_wall_s": traced[1],
        "trace_and_plan_cpu_s": total[0],
        "trace_and_plan_wall_s": total[1],
    }


def warm_up() -> None:
    """What the first call of anything loads is not the network's."""
    pp.prune(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval(), torch.randn(2, 4), ratio=0.5)
    model, example = llama(1)
    pp.prune(model.eval(), example, ratio=0.5)


def bytes_of(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in (*model.parameters(), *model.buffers()))


def resident() -> int:
    return int(psutil.Process().memory_info().rss)


def reset_peak() -> None:
    """Linux forgets the largest resident size so far."""
    Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    line = next(t for t in Path("/proc/self/status").read_text().splitlines() if t.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


PARTS: dict[str, tuple[dict[str, Callable[[], Built]], Callable[[Callable[[], Built]], dict[str, Any]]]] = {
    "nodes": (NODES, nodes),
    "memory": (MEMORY, memory),
    "llama": (LLAMA, planned),
}


# -- the run -----------------------------------------------------------------------------------------------------------


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=tuple(PARTS), action="append", help="one part only; may be repeated")
    options.add_argument("--only", help="one network only")
    options.add_argument("--child", nargs=2, metavar=("PART", "NAME"), help=argparse.SUPPRESS)
    given = options.parse_args()
    if given.child:
        part, name = given.child
        networks, measure = PARTS[part]
        torch.manual_seed(0)
        print(MARK + json.dumps(measure(networks[name])))
        return
    result = json.loads(RESULT.read_text()) if RESULT.exists() and (given.part or given.only) else {}
    result |= {"command": " ".join(["python", *sys.argv]), "commit": commit(), "machine": machine_facts()}
    for part in given.part or PARTS:
        rows = result.setdefault(part, {})
        for name in PARTS[part][0]:
            if given.only in (None, name):
                rows[name] = answered(part, name)
                print(part, name, json.dumps(rows[name]), flush=True)
    result["figures"] = dict(figures(result))
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"], indent=1))


def answered(part: str, name: str) -> dict[str, Any]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--child", part, name]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    lines = [t for t in done.stdout.splitlines() if t.startswith(MARK)]
    if not lines:
        sys.exit(f"{part} {name} ended with status {done.returncode}:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(lines[-1].removeprefix(MARK))
    return answer


def figures(result: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    rows = result.get("nodes", {})
    for family in sorted({n.partition("-")[0] for n in rows}):
        mine = [r for n, r in rows.items() if n.startswith(family)]
        count, seconds = np.array([r["nodes"] for r in mine]), np.array([min(r["axes_cpu_s"]) for r in mine])
        if len(mine) > 1:
            yield f"{family}: exponent", round(float(np.polyfit(np.log(count), np.log(seconds), 1)[0]), 2)
            per = seconds / count * 1000
            yield (
                f"{family}: seconds for 1,000 nodes, smallest and largest",
                [round(float(v), 3) for v in np.sort(per)[[0, -1]]],
            )
    for name, row in result.get("memory", {}).items():
        yield f"{name}: peak over weights", round(row["peak_bytes"] / row["weights_bytes"], 2)
    for name, row in result.get("llama", {}).items():
        yield f"{name}: GB above the weights", round(row["above_weights_bytes"] / 1e9, 2)
        yield f"{name}: CPU s to trace and plan", round(row["trace_and_plan_cpu_s"], 1)


def commit() -> str:
    git = ["git", "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(git, capture_output=True, text=True, check=False, cwd=RESULT.parent.parent).stdout.strip()


if __name__ == "__main__":
    main()
