"""The same networks as users of NNCF, Olive and Torch-Pruning would treat them, from their own documentation.

NNCF      openvino.convert_model of the PyTorch network, nncf.quantize on the same calibration data, compiled.
Olive     an ONNX file of torch.onnx.export through its OnnxStaticQuantization pass (Olive 0.13), same data.
Torch-Pruning + torch.onnx    half of every layer's outputs but the last one's (MagnitudeImportance), torch.onnx.export.

Olive: pip install --target DIR --no-deps olive-ai onnx_ir onnxscript opentelemetry-{api,sdk,semantic-conventions}
questionary prompt_toolkit wcwidth torchmetrics lightning-utilities requests urllib3 idna certifi charset_normalizer,
and DIR on PYTHONPATH.
It is told not to report its use.
"""

from __future__ import annotations

import argparse
import copy
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.graph import Example
from paretoprune.targets import find_target
from paretoprune.targets.feeds import feed_of
from runtime_data import DATA
from runtime_networks import network
from zoo.networks.entry import torchvision_operators

PRUNED = ("ResNet-18", "MobileNetV2", "ResNet-56", "BERT-small", "LSTM", "recommender")
Paired = Callable[..., Any]
Rows = Iterator[dict[str, Any]]


def rows(
    given: argparse.Namespace, done: set[str], paired: Paired, timing: Any, samples: Any
) -> Iterator[dict[str, Any]]:
    for name in DATA:
        for peer, how in {"NNCF": nncf, "Olive": olive}.items():
            key = f"peers {peer} {name}"
            if key not in done:
                yield quantized(key, peer, name, how, paired, timing, samples)
    for name in [n for n in PRUNED if n in given.networks]:
        key = f"peers Torch-Pruning {name}"
        if key not in done:
            yield halved(key, name, paired, timing, samples)


def quantized(
    key: str, peer: str, name: str, how: Callable[..., Path], paired: Paired, timing: Any, samples: Any
) -> dict[str, Any]:
    data = DATA[name]()
    runtime = "openvino" if peer == "NNCF" else "onnxruntime"
    target = find_target(runtime)
    row: dict[str, Any] = {"part": "peers", "key": key, "network": name, "peer": peer, "runtime": runtime}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dense = pp.export(data.model, data.example, folder / "dense.onnx", runtime)
        ours = pp.export(data.model, data.example, folder / "ours.onnx", runtime, "int8", data.calibration)
        try:
            theirs = how(data.model, data.example, data.calibration, folder)
            predict = Answers(target, theirs) if theirs.suffix == ".onnx" else FromXml(theirs)
            row["theirs"] = {
                "accuracy": hits(predict, data.test),
                **against(paired, timing, samples, target, dense, theirs, data.example),
            }
        except Exception as error:  # noqa: BLE001 - whatever a peer raises
            row["theirs"] = {"refused": f"{type(error).__name__}: {error}"[:300]}
        row["ours"] = {
            "accuracy": hits(Answers(target, ours), data.test),
            **against(paired, timing, samples, target, dense, ours, data.example),
        }
        row["dense_accuracy"] = hits(Answers(target, dense), data.test)
    return row


def halved(key: str, name: str, paired: Paired, timing: Any, samples: Any) -> dict[str, Any]:
    net, target = network(name), find_target("onnxruntime")
    row: dict[str, Any] = {
        "part": "peers",
        "key": key,
        "network": name,
        "peer": "Torch-Pruning",
        "runtime": target.name,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        dense = pp.export(net.model, net.example, folder / "dense.onnx")
        ours = pp.export(pp.prune(net.model, net.example, ratio=0.5, axes="all"), net.example, folder / "ours.onnx")
        row["ours"] = against(paired, timing, samples, target, dense, ours, net.example)
        try:
            theirs = torch_pruning(net.model, net.example, folder / "theirs.onnx")
            row["theirs"] = against(paired, timing, samples, target, dense, theirs, net.example)
        except Exception as error:  # noqa: BLE001 - whatever a peer raises
            row["theirs"] = {"refused": f"{type(error).__name__}: {error}"[:300]}
    return row


def against(paired: Paired, timing: Any, samples: Any, target: Any, dense: Path, file: Path, example: Tensor) -> Any:
    """Speed over the dense fp32 file, and bytes. An .xml file has its weights beside it."""
    beside = file.with_suffix(".bin").stat().st_size if file.suffix == ".xml" else 0
    if file.suffix == ".xml":
        target = WithXml(target)
    pair = paired(target, dense, file, example, timing())
    return {
        "speedup": pair.ratio.to_json(),
        "ms": pair.b.latency_ms.to_json(),
        "size_bytes": file.stat().st_size + beside,
        "dense_bytes": dense.stat().st_size,
        "raw": samples(pair),
    }


class Answers:
    def __init__(self, target: Any, path: Path) -> None:
        self.runner = target.load(path)

    def __call__(self, x: Tensor) -> Any:
        found = self.runner(dict(zip(self.runner.input_names, feed_of(Example.of(x)).values(), strict=True)))
        return found[0]


class FromXml:
    """One thread and f32 hints, as our target runs it."""

    input_names = ("input",)

    def __init__(self, path: Path) -> None:
        import openvino

        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
        self.request = openvino.Core().compile_model(str(path), "CPU", settings).create_infer_request()

    def __call__(self, inputs: Any) -> Any:
        array = inputs["input"] if isinstance(inputs, Mapping) else inputs.numpy()
        self.request.infer([array], share_inputs=True)
        return np.array(self.request.get_output_tensor(0).data)


class WithXml:
    def __init__(self, target: Any) -> None:
        self.target = target

    def load(self, path: Path) -> Any:
        return FromXml(path) if path.suffix == ".xml" else self.target.load(path)


def hits(predict: Callable[[Tensor], Any], test: list[tuple[Tensor, Tensor]]) -> float:
    right = [(np.asarray(predict(x)).reshape(len(y), -1).argmax(1) == y.numpy()) for x, y in test]
    return float(np.concatenate(right).mean())


def nncf(model: nn.Module, example: Tensor, calibration: list[Tensor], folder: Path) -> Path:
    os.environ.setdefault("NNCF_CI", "1")
    import nncf as library
    import openvino

    logging.getLogger("nncf").setLevel(logging.ERROR)
    converted = openvino.convert_model(model, example_input=example)
    made = library.quantize(converted, library.Dataset([x.numpy() for x in calibration]))
    openvino.save_model(made, str(folder / "nncf.xml"))
    return folder / "nncf.xml"


def olive(model: nn.Module, example: Tensor, calibration: list[Tensor], folder: Path) -> Path:
    os.environ["OLIVE_DISABLE_TELEMETRY"] = "1"
    torchvision_operators()
    from olive.data.config import DataConfig
    from olive.data.registry import Registry
    from olive.workflows import run

    class Images(torch.utils.data.Dataset[Any]):
        rows = torch.cat(calibration)

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> Any:
            return {"input": self.rows[index]}, 0

    @Registry.register_dataset(name="our_images")  # type: ignore[misc]
    def our_images(**_: Any) -> Any:
        return Images()

    plain = folder / "plain.onnx"
    torch.onnx.export(
        model, (example,), str(plain), dynamo=False, input_names=["input"], output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}}, opset_version=17,
    )  # fmt: skip
    config = DataConfig(
        name="images",
        load_dataset_config={"type": "our_images"},
        dataloader_config={"batch_size": 1},
        pre_process_data_config={"type": "skip_pre_process"},
        post_process_data_config={"type": "skip_post_process"},
    )
    run(
        {
            "input_model": {"type": "OnnxModel", "model_path": str(plain)},
            "data_configs": [config.to_json()],
            "passes": {"quantized": {"type": "OnnxStaticQuantization", "data_config": "images"}},
            "output_dir": str(folder / "olive"),
            "cache_dir": str(folder / "cache"),
            "log_severity_level": 4,
        }
    )
    return next(iter(sorted((folder / "olive").rglob("*.onnx"))))


def torch_pruning(model: nn.Module, example: Tensor, path: Path) -> Path:
    torchvision_operators()
    import torch_pruning as tp

    model = copy.deepcopy(model).eval()
    layers = [m for m in model.modules() if isinstance(m, nn.Linear)]
    pruner = tp.pruner.BasePruner(
        model, example, importance=tp.importance.MagnitudeImportance(), pruning_ratio=0.5, ignored_layers=layers[-1:]
    )
    pruner.step()
    with torch.no_grad():
        model(example)
    torch.onnx.export(
        model, (example,), str(path), dynamo=False, input_names=["input"], output_names=["output"],
        dynamic_axes={"input": {0: "batch"}, "output": {0: "batch"}}, opset_version=17,
    )  # fmt: skip
    return path
