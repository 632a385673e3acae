"""Time to first token and per token, of files with and without a key-value cache."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.errors import TargetError, UsageError
from paretoprune.targets import OnnxRuntime, token_latency
from paretoprune.targets.tokens import LanguageModel, prompt_feed

WORDS, WIDTH = 40, 16


class Cached(nn.Module):
    """One layer of attention, one head, no positions; what it saw comes in and goes out."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(WORDS, WIDTH)
        self.qkv = nn.Linear(WIDTH, 3 * WIDTH)
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, ids: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embed(ids)
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        k, v = torch.cat([key, k], dim=1), torch.cat([value, v], dim=1)
        ahead = torch.ones(q.shape[1], k.shape[1]).triu(k.shape[1] - q.shape[1] + 1).bool()
        scores = (q @ k.transpose(1, 2) / math.sqrt(WIDTH)).masked_fill(ahead, -1e9)
        return self.head(x + scores.softmax(-1) @ v), k, v


class Whole(Cached):
    """The same without a cache."""

    def forward(self, ids: Tensor) -> Tensor:  # type: ignore[override]
        nothing = torch.zeros(ids.shape[0], 0, WIDTH)
        return super().forward(ids, nothing, nothing)[0]


def written(module: nn.Module, example: Any, path: Path, inputs: list[str], outputs: list[str], axes: Any) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            module.eval(),
            example,
            str(path),
            dynamo=False,
            opset_version=17,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
        )
    return path


IDS = torch.randint(0, WORDS, (2, 5))
OPEN = {"input_ids": {0: "batch", 1: "sequence"}, "logits": {0: "batch", 1: "sequence"}}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("whole") / "whole.onnx"
    return written(Whole(), (IDS,), path, ["input_ids"], ["logits"], OPEN)


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path, past = tmp_path_factory.mktemp("cached") / "cached.onnx", torch.zeros(2, 3, WIDTH)
    caches = [f"past_key_values.0.{part}" for part in ("key", "value")]
    presents = [f"present.0.{part}" for part in ("key", "value")]
    axes = {**OPEN, **{name: {0: "batch", 1: "past"} for name in caches}}
    axes |= {name: {0: "batch", 1: "all"} for name in presents}
    return written(Cached(), (IDS, past, past), path, ["input_ids", *caches], ["logits", *presents], axes)


class Watching(OnnxRuntime):
    """Notes what each call was fed."""

    def __init__(self) -> None:
        super().__init__()
        self.fed: list[Mapping[str, NDArray[Any]]] = []

    def load(self, path: Path) -> Any:
        runner, fed = super().load(path), self.fed

        def call(feed: Mapping[str, NDArray[Any]]) -> Any:
            fed.append(feed)
            return runner(feed)

        return call


def lengths(target: Watching, last: int) -> list[int]:
    return [feed["input_ids"].shape[1] for feed in target.fed[-last:]]


def test_without_a_cache_the_sequence_grows_and_the_note_says_so(whole: Path) -> None:
    target = Watching()
    found = token_latency(target, whole, 6, 4, generations=30)
    assert found.keys() == {"first_token_ms", "per_token_ms", "per_token_p95_ms", "tokens_per_s"} - {"per_token_p95_ms"}
    assert lengths(target, 4) == [6, 7, 8, 9]
    assert (found["per_token_ms"].runs, found["first_token_ms"].runs) == (90, 30)
    assert "prompt of 6, 4 new tokens" in found["first_token_ms"].note
    assert "no key-value cache in the file" in found["per_token_ms"].note
    assert all(m.low <= m.value <= m.high and m.status == "measured" for m in found.values())
    assert found["tokens_per_s"].value <= 1e3 / found["per_token_ms"].low * 1.5
    assert len({m.target for m in found.values()}) == 1


def test_with_a_cache_only_the_new_token_goes_in(cached: Path) -> None:
    target = Watching()
    found = token_latency(target, cached, 6, 4, generations=40)
    assert lengths(target, 4) == [6, 1, 1, 1]
    assert [feed["past_key_values.0.key"].shape[1] for feed in target.fed[-4:]] == [0, 6, 7, 8]
    assert "key-value cache" in found["per_token_ms"].note
    assert "no key-value" not in found["per_token_ms"].note
    assert found["per_token_p95_ms"].value >= found["per_token_ms"].value


def test_both_files_say_the_same_words(whole: Path, cached: Path) -> None:
    said = []
    for path in (whole, cached):
        target = Watching()
        model = LanguageModel.open(target, path)
        ids = np.array([[3, 1, 4, 1, 5]])
        model.generate(ids, 5)
        text = [feed["input_ids"][0, -1] for feed in target.fed[1:]]
        said.append(text)
    assert said[0] == said[1]


def test_one_token_has_no_next(whole: Path) -> None:
    assert token_latency(OnnxRuntime(), whole, 3, 1, max_s=1e-6).keys() == {"first_token_ms", "tokens_per_s"}


def test_masks_and_positions_follow_the_tokens(tmp_path: Path) -> None:
    info = onnx.helper.make_tensor_value_info
    names = ("input_ids", "attention_mask", "position_ids")
    ids = [info(name, onnx.TensorProto.INT64, ["b", "s"]) for name in names]
    past = info("past_key_values.0.key", onnx.TensorProto.FLOAT, ["b", 2, "past", 4])
    out = info("present.0.key", onnx.TensorProto.FLOAT, None)
    nodes = [onnx.helper.make_node("Identity", ["past_key_values.0.key"], ["present.0.key"])]
    path = tmp_path / "f.onnx"
    onnx.save(onnx.helper.make_model(onnx.helper.make_graph(nodes, "g", [*ids, past], [out])), path)
    model = LanguageModel.read(path)
    empty = model.empty_cache()
    assert empty["past_key_values.0.key"].shape == (1, 2, 0, 4)
    feed = model.feed(np.array([[7, 8]]), {"past_key_values.0.key": np.zeros((1, 2, 3, 4), np.float32)})
    assert feed["attention_mask"].tolist() == [[1, 1, 1, 1, 1]]
    assert feed["position_ids"].tolist() == [[3, 4]]
    assert prompt_feed(path, 3)["input_ids"].shape == (1, 3)


@pytest.mark.parametrize("counts", [(0, 1), (1, 0), (1, 2.5), (True, 1), (3,), (1, 2, 3)])
def test_counts_that_are_none(whole: Path, counts: Any) -> None:
    with pytest.raises(UsageError, match="give the prompt's and the new tokens"):
        pp.measure(whole, tokens=counts)


def test_a_file_that_is_no_language_model(tmp_path: Path, whole: Path) -> None:
    pictures = pp.export(nn.Linear(4, 4), torch.randn(2, 4), tmp_path / "linear.onnx")
    with pytest.raises(UsageError, match="takes input: tokens= is for a language model"):
        token_latency(OnnxRuntime(), pictures, 3, 2)
    with pytest.raises(UsageError, match="reads what an ONNX file"):
        token_latency(OnnxRuntime(), tmp_path / "f.pte", 3, 2)
    one_length = pp.export(Whole().eval(), {"ids": IDS}, tmp_path / "fixed.onnx")
    model = onnx.load(one_length)
    for value in (model.graph.input[0], *(n for n in model.graph.node)):
        if isinstance(value, onnx.NodeProto):
            value.input[:] = ["input_ids" if name == "ids" else name for name in value.input]
    model.graph.input[0].name = "input_ids"
    onnx.save(model, one_length)
    with pytest.raises(UsageError, match="sequences have 5 tokens each; .* dynamic sequence length"):
        token_latency(OnnxRuntime(), one_length, 3, 2)


def test_a_file_that_gives_no_logits(tmp_path: Path) -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(WORDS, 3)

        def forward(self, ids: Tensor) -> Tensor:
            return self.embed(ids).mean(1)

    path = written(Mean(), (IDS,), tmp_path / "mean.onnx", ["input_ids"], ["logits"], OPEN)
    with pytest.raises(TargetError, match=r"gives \(1, 3\) first; expected logits"):
        token_latency(OnnxRuntime(), path, 3, 2)


def test_through_the_public_door(whole: Path) -> None:
    found = pp.measure(whole, tokens=(12, 6))
    assert {"first_token_ms", "per_token_ms", "tokens_per_s", "latency_ms", "energy_mj", "fps"} <= found.keys()
    assert found["latency_ms"].unit == found["per_token_ms"].unit == "ms"
