from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import nn

from paretoprune.core.errors import TargetError
from paretoprune.core.graph import Example
from paretoprune.targets import find_target
from paretoprune.targets.fresh import in_fresh_process, opener_of
from paretoprune.targets.verify import check_outputs


class Two(nn.Module):
    """Two outputs, and an input that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: torch.Tensor, unread: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y = self.layer(x)
        return y, y.argmax(1)


@pytest.mark.parametrize("name", ["onnxruntime", "openvino"])
def test_a_fresh_process_answers_what_this_one_does(tmp_path, name):
    if name == "openvino":
        pytest.importorskip("openvino", reason="needs the extra openvino: pip install 'paretoprune[openvino]'")
    target = find_target(name)
    example = Example((torch.randn(2, 5), torch.zeros(2, 1)))
    path = target.export(Two().eval(), example, tmp_path / "m.onnx")
    feeds = [
        {
            "input_0": np.random.default_rng(n).normal(size=(n, 5)).astype(np.float32),
            "input_1": np.zeros((n, 1), np.float32),
        }
        for n in (1, 2, 11)
    ]
    found = in_fresh_process(path, feeds[0], feeds, opener=opener_of(target))
    runner = target.load(path)
    for feed, outputs in zip(feeds, found.outputs, strict=True):
        expected = runner({name: feed[name] for name in runner.input_names})
        check_outputs(name, runner.output_names, expected, outputs)
    assert found.first_ns > 0
    assert found.grown > 0 or sys.platform != "linux"


@pytest.mark.skipif(sys.platform != "linux", reason="resident peaks are read from /proc")
def test_the_memory_of_one_sample_does_not_count_the_batches(tmp_path):
    target = find_target("onnxruntime")
    net = nn.Sequential(nn.Linear(64, 4096), nn.ReLU(), nn.Linear(4096, 2)).eval()
    path = target.export(net, Example.of(torch.randn(2, 64)), tmp_path / "m.onnx")
    sample, large = ({"input": np.ones((n, 64), np.float32)} for n in (1, 4096))
    alone = in_fresh_process(path, sample, opener=opener_of(target))
    beside = in_fresh_process(path, sample, [large], opener=opener_of(target))
    assert abs(beside.grown - alone.grown) < 4 * 2**20 < 4 * 4096 * 4096


def test_a_target_of_ones_own_says_how_it_is_opened(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "class Runner:\n"
        "    input_names = ('x',)\n"
        "    def __init__(self, factor): self.factor = factor\n"
        "    def __call__(self, feed): return (self.factor * feed['x'],)\n"
        "def opened(name, threads):\n"
        "    return lambda path: Runner(float(path.read_text()) * threads * len(name))\n"
    )
    (tmp_path / "file.txt").write_text("2.0")
    monkeypatch.syspath_prepend(tmp_path)

    class Mine:
        name, threads, precisions, reopen = "abc", 2, ("fp32",), "mine:opened"

    feed = {"x": np.arange(3.0)}
    found = in_fresh_process(tmp_path / "file.txt", feed, [feed], opener=opener_of(Mine()))
    np.testing.assert_array_equal(found.outputs[0][0], 12 * feed["x"])
    Mine.reopen = ""
    assert opener_of(Mine()) is None


def test_what_a_child_prints_or_leaves_out_is_no_answer(tmp_path, monkeypatch):
    (tmp_path / "silent.py").write_text("import sys\ndef opened(name, threads): sys.exit(0)\n")
    (tmp_path / "file.txt").write_text("")
    monkeypatch.syspath_prepend(tmp_path)

    class Silent:
        name, threads, precisions, reopen = "silent", 1, ("fp32",), "silent:opened"

    with pytest.raises(TargetError, match="gave no answer in a fresh process"):
        in_fresh_process(tmp_path / "file.txt", {"x": np.zeros(1)}, opener=opener_of(Silent()))
