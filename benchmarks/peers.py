"""Our criteria and Torch-Pruning's pruners at equal MACs and with equal tuning: ResNet-20, an encoder, an LSTM.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/peers.py [--networks resnet20] [--seeds 0 1 2]

Both may cut the same axes: inner channels, heads and feed-forward channels, recurrent units; for Torch-Pruning the
layers that write into the residual stream are on its list of ignored layers. ResNet-20 keeps 1/2.11 of its MACs, the
other two, which are larger than their tasks, a quarter. MACs are counted by our tracer for both;
its ratio is searched for the network nearest to the share. Every contender is judged without tuning on validation data
(once as it comes, and where there are batch norms once with their statistics taken again); the best four of each side
are then distilled, the same steps with the same settings, and read the test data once each. Its sparse training
(GroupNorm, GrowingReg) is left out: neither side has steps for that here. Criteria and ways were chosen on validation
data. Needs benchmarks/zoo/requirements.txt. Rows go to benchmarks/results/peers.json one by one; a second run goes on
with it.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
import trained
from paretoprune.core.errors import PruneError
from paretoprune.targets.fingerprint import machine_facts
from scale import commit
from trained import accuracy

RESULT = Path(__file__).parent / "results" / "peers.json"
BEST = 4
CALIBRATION = 512
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Entry:
    """`share`: of the MACs that stay. `calibration(seed)`: batches that were trained on, a draw for each seed.

    `kept_whole`: layers whose outputs are not cut, for the peer.
    """

    model: nn.Module
    calibration: Callable[[int], Batches]
    training: Callable[[], Iterable[Any]]
    validation: Batches
    test: Batches
    kept_whole: tuple[str, ...]
    steps: int
    tuning: Mapping[str, Any]
    share: float = 1 / 2.11
    heads: int = 0


def resnet20() -> Entry:
    from recover import Bench

    bench = Bench()
    first = bench.cifar.TRAIN
    held = list(bench.cifar.Batches(bench.images[first : first + 2000], bench.labels[first : first + 2000]))

    def calibration(seed: int) -> Batches:
        drawn = np.random.default_rng(seed).choice(first, CALIBRATION, replace=False)
        return list(bench.cifar.Batches(bench.images[drawn], bench.labels[drawn]))

    whole = ("conv1", "linear", *(n for n, _ in bench.model.named_modules() if n.endswith(".conv2")))
    return Entry(bench.model, calibration, bench.training, held, list(bench.test), whole, 100, {})


def trained_here(name: str, steps: int, lr: float, whole: tuple[str, ...], heads: int = 0) -> Entry:
    network = trained.NETWORKS[name]()
    read = network.train

    def calibration(seed: int) -> Batches:
        drawn = torch.randperm(len(read.x), generator=torch.Generator().manual_seed(seed))[:CALIBRATION]
        return list(trained.Reader(read.x[drawn], read.y[drawn]))

    names = [n for n, m in network.model.named_modules() if n.endswith(whole) and not list(m.children())]
    tuning = {"optimizer": lambda parameters: torch.optim.AdamW(parameters, lr=lr)}
    training = lambda: trained.Reader(read.x, read.y, read.batch, True, read.noise)  # noqa: E731
    return Entry(
        network.model, calibration, training, network.validation, network.test, tuple(names), steps, tuning, 0.25, heads
    )


STREAM = ("embeddings", "output.dense", "classifier")
ENTRIES: Mapping[str, Callable[[], Entry]] = {
    "resnet20": resnet20,
    "encoder": lambda: trained_here("encoder", 200, 5e-4, STREAM, heads=4),
    "lstm": lambda: trained_here("recurrent", 100, 1e-3, ("head",)),
}
OURS: Mapping[str, Mapping[str, Any]] = {
    **{name: {"criterion": name} for name in ("reconstruction", "lamp", "taylor", "taylor-gate", "fisher", "obd")},
    **{f"{name}, uniform": {"criterion": name, "ranking": "local"} for name in ("reconstruction", "wanda", "l2")},
    "any rank": {"ranks": "auto"},
}


class Peer:
    """Torch-Pruning 1.6.1 as its documentation uses it, one step."""

    WAYS: Mapping[str, tuple[str, bool]] = {
        "magnitude, local": ("MagnitudeImportance", False),
        "magnitude, global": ("MagnitudeImportance", True),
        "bn-scale, global": ("BNScaleImportance", True),
        "lamp, global": ("LAMPImportance", True),
        "fpgm, local": ("FPGMImportance", False),
        "taylor, local": ("TaylorImportance", False),
        "taylor, global": ("TaylorImportance", True),
        "hessian, global": ("HessianImportance", True),
    }

    def __init__(self, entry: Entry) -> None:
        self.entry, self.dense = entry, pp.trace(entry.model, entry.validation[0][0][:2]).macs()

    def pruned(self, way: str, seed: int) -> nn.Module:
        """The network nearest to the share of the MACs; its ratio is found by bisection."""
        low, high, found = 0.0, 1.0, []
        for _ in range(8):
            ratio = (low + high) / 2
            model = self.at(way, ratio, seed)
            share = pp.trace(model, self.entry.validation[0][0][:2]).macs() / self.dense
            found.append((abs(share - self.entry.share), model))
            low, high = (low, ratio) if share < self.entry.share else (ratio, high)
        distance, model = min(found, key=lambda pair: pair[0])
        if distance > 0.2:
            raise RuntimeError(f"no ratio comes nearer than {distance:.2f} to the share of the MACs")
        return model

    def at(self, way: str, ratio: float, seed: int) -> nn.Module:
        import torch_pruning as tp

        kind, everywhere = self.WAYS[way]
        model = copy.deepcopy(self.entry.model).eval()
        importance = getattr(tp.importance, kind)()
        heads = {
            getattr(m, part): m.num_attention_heads
            for m in model.modules()
            if self.entry.heads and hasattr(m, "num_attention_heads") and hasattr(m, "query")
            for part in ("query", "key", "value")
        }
        modules = dict(model.named_modules())
        pruner = tp.pruner.BasePruner(
            model,
            self.entry.validation[0][0][:2],
            importance=importance,
            global_pruning=everywhere,
            pruning_ratio=ratio,
            max_pruning_ratio=0.95,
            ignored_layers=[modules[n] for n in self.entry.kept_whole],
            num_heads=heads,
            prune_num_heads=bool(heads),
            prune_head_dims=False,
            head_pruning_ratio=ratio if heads else 0.0,
        )
        if kind in ("TaylorImportance", "HessianImportance"):
            self.gradients(model, importance, kind == "HessianImportance", seed)
        pruner.step()
        for m in modules.values():
            if heads and hasattr(m, "num_attention_heads") and hasattr(m, "query"):
                m.num_attention_heads = m.query.out_features // m.attention_head_size
                m.all_head_size = m.query.out_features
        model.zero_grad(set_to_none=True)
        return model

    def gradients(self, model: nn.Module, importance: Any, each: bool, seed: int) -> None:
        """Of the loss; for second derivatives sample by sample, of the first 128."""
        model.zero_grad()
        batches = self.entry.calibration(seed)
        if not each:
            for x, y in batches:
                F.cross_entropy(model(x), y).backward()
            return
        x, y = (torch.cat([batch[i] for batch in batches])[:128] for i in (0, 1))
        for one, label in zip(x.split(1), y.split(1), strict=True):
            model.zero_grad()
            F.cross_entropy(model(one), label).backward()
            importance.accumulate_grad(model)


def recalibrated(model: nn.Module, batches: Batches) -> nn.Module:
    """Statistics of batch norms anew; a network without them stays as it is."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    with torch.no_grad():
        for x, _ in batches if norms else []:
            model(x)
    for norm in norms:
        norm.momentum = 0.1
    return model.eval()


class Contest:
    def __init__(self, name: str, result: dict[str, Any]) -> None:
        self.name, self.result, self.entry = name, result, ENTRIES[name]()
        self.peer = Peer(self.entry)

    def have(self, part: str, seed: int) -> dict[tuple[str, str], dict[str, Any]]:
        mine = [r for r in self.result["rows"] if (r["network"], r["part"], r["seed"]) == (self.name, part, seed)]
        return {(r["side"], r["way"]): r for r in mine}

    def untuned(self, seed: int) -> Iterator[dict[str, Any]]:
        for side, way in [("ours", w) for w in OURS] + [("Torch-Pruning", w) for w in Peer.WAYS]:
            if (side, way) in self.have("untuned", seed):
                continue
            start = time.process_time()
            row: dict[str, Any] = {"network": self.name, "part": "untuned", "side": side, "way": way, "seed": seed}
            try:
                model = self.made(side, way, seed)
            except Exception as error:
                if side == "ours" and not isinstance(error, PruneError):
                    raise
                yield row | {"refused": f"{type(error).__name__}: {error}"[:300]}
                continue
            row["cpu_s"] = time.process_time() - start
            row["macs"] = self.peer.dense and pp.trace(model, self.entry.validation[0][0][:2]).macs() / self.peer.dense
            row["as_it_comes"] = accuracy(model, self.entry.validation)
            if side != "ours":
                model = recalibrated(model, self.entry.calibration(seed))
            yield row | {"validation": accuracy(model, self.entry.validation)}

    def tuned(self, seed: int) -> Iterator[dict[str, Any]]:
        rows = [r for r in self.have("untuned", 0).values() if "refused" not in r]
        for side in ("ours", "Torch-Pruning"):
            best = sorted((r for r in rows if r["side"] == side), key=lambda r: -r["validation"])[:BEST]
            for way in [r["way"] for r in best]:
                if (side, way) in self.have("tuned", seed):
                    continue
                model, start = self.made(side, way, seed), time.process_time()
                macs = pp.trace(model, self.entry.validation[0][0][:2]).macs() / self.peer.dense
                model = pp.distill(
                    model, self.entry.model, self.entry.training(), steps=self.entry.steps, seed=seed,
                    **self.entry.tuning,
                )  # fmt: skip
                yield {
                    "network": self.name, "part": "tuned", "side": side, "way": way, "seed": seed, "macs": macs,
                    "steps": self.entry.steps, "cpu_s": time.process_time() - start,
                    "validation": accuracy(model, self.entry.validation), "test": accuracy(model, self.entry.test),
                }  # fmt: skip

    def made(self, side: str, way: str, seed: int) -> nn.Module:
        if side != "ours":
            return self.peer.pruned(way, seed)
        example = self.entry.validation[0][0][:2]
        pruned = pp.prune(
            self.entry.model, example, macs=self.entry.share, calibration=self.entry.calibration(seed), **OURS[way]
        )
        model: nn.Module = pruned.model
        return model


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--networks", nargs="+", default=list(ENTRIES), choices=list(ENTRIES))
    options.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options.add_argument("--parts", nargs="+", default=["untuned", "tuned"], choices=["untuned", "tuned"])
    options.add_argument("--threads", type=int, default=1)
    given = options.parse_args()
    torch.set_num_threads(given.threads)
    result = json.loads(RESULT.read_text()) if RESULT.exists() else {"rows": [], "dense": {}, "commands": []}
    result["commands"].append(" ".join(["python", *sys.argv]))
    about = {"commit": commit(), "machine": machine_facts(), "threads": given.threads}
    for name in given.networks:
        contest = Contest(name, result)
        for seed in given.seeds:
            for part in [p for p in given.parts if p != "untuned" or seed == 0]:
                for row in getattr(contest, part)(seed):
                    result["rows"].append(row | about)
                    RESULT.write_text(json.dumps(result, indent=1) + "\n")
                    print(json.dumps(row), flush=True)
        if name not in result["dense"]:
            entry = contest.entry
            both = {k: accuracy(entry.model, v) for k, v in (("validation", entry.validation), ("test", entry.test))}
            result["dense"][name] = both
    result["figures"] = figures(result["rows"])
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result["figures"], indent=1))


def figures(rows: list[dict[str, Any]]) -> dict[str, str]:
    found = {}
    for row in (r for r in rows if r["part"] == "untuned"):
        key = f"{row['network']}, untuned, validation: {row['side']}, {row['way']}"
        found[key] = row.get("refused") or f"{100 * row['validation']:.1f} at {row['macs']:.3f} of the MACs"
    tuned = [r for r in rows if r["part"] == "tuned"]
    for network, side, way in dict.fromkeys((r["network"], r["side"], r["way"]) for r in tuned):
        mine = [r for r in tuned if (r["network"], r["side"], r["way"]) == (network, side, way)]
        values = [100 * r["test"] for r in mine]
        spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        macs = statistics.mean(r["macs"] for r in mine)
        how = f"at {macs:.3f} of the MACs ({len(values)} seeds, {mine[0]['steps']} steps)"
        found[f"{network}, tuned, test: {side}, {way}"] = f"{statistics.mean(values):.2f}{spread} {how}"
    return found


if __name__ == "__main__":
    main()
