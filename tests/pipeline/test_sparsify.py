"""`pp.sparsify`: where the zeros stand, what else changes, and what a plan says of them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import paretoprune as pp
from paretoprune.core.sparsity import Zeros
from paretoprune.graph import tensors_of
from paretoprune.pipeline import sparsify, zero_hooks
from paretoprune.pipeline.zeros import Layer
from paretoprune.pipeline.zeros import _chosen as chosen
from paretoprune.recover import Gram
from paretoprune.sparsity import Block, NofM, mask_above, mask_of, masks_of, matrix_of, pattern_of
from thin_networks import Small, batches, images, made

errors = pp.errors
WEIGHTS = ("conv1.weight", "conv2.weight", "block.0.up.weight", "block.0.down.weight", "fc1.weight", "fc2.weight")
LABELLED = [(images(16, seed), torch.arange(16) % 5) for seed in range(3)]


@pytest.fixture(scope="module")
def small() -> nn.Module:
    return made()


@pytest.fixture(scope="module")
def captured(small: nn.Module) -> Any:
    return pp.trace(small, images()), pp.apply(small, images(), pp.Plan())


@pytest.fixture
def quick(captured: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The network was captured once for all."""
    monkeypatch.setattr(sparsify.graphs, "trace", lambda *_: captured[0])
    monkeypatch.setattr(sparsify, "carry_out", lambda *_: captured[1])


@pytest.fixture(scope="module")
def sparse(small: nn.Module) -> pp.Pruned:
    return pp.sparsify(small, images(), pattern="4x1", sparsity=0.6)


def matrices(model: nn.Module) -> dict[str, Any]:
    held = tensors_of(model)
    return {n: matrix_of(held[n].detach().numpy()) for n in WEIGHTS}


def test_zeros_stand_where_the_pattern_says_and_nothing_else_changes(small: nn.Module, sparse: pp.Pruned) -> None:
    before, after = matrices(small), matrices(sparse.model)
    assert type(sparse.model) is Small
    for name in WEIGHTS:
        mask = mask_of(Block(4, 1), np.abs(before[name]), 0.6)
        assert np.array_equal(after[name], np.where(mask, before[name], 0))
    whole, now = tensors_of(small), tensors_of(sparse.model)
    assert all(torch.equal(now[n], t) for n, t in whole.items() if n not in WEIGHTS)
    assert sparse.plan.sparsity == dict.fromkeys(WEIGHTS, "4x1@0.6")
    assert any("weights in 6 layers are zero" in n for n in sparse.notes)
    graph = tensors_of(sparse.program.module)
    assert all(torch.equal(graph[n], now[n]) for n in WEIGHTS)


@pytest.mark.usefixtures("quick")
def test_the_given_network_is_left_alone(small: nn.Module) -> None:
    before = copy.deepcopy(small.state_dict())
    pp.sparsify(small, images(), pattern="2:4", criterion="wanda", calibration=batches())
    assert all(torch.equal(before[k], v) for k, v in small.state_dict().items())


def test_a_sparse_network_is_saved_loaded_and_replayed(small: nn.Module, sparse: pp.Pruned, tmp_path: Path) -> None:
    loaded = pp.load(pp.save(sparse, tmp_path / "net"), made())
    assert loaded.plan == sparse.plan
    again = pp.apply(made(), images(), sparse.plan.to_json())
    for network in (loaded, again):
        assert type(network.model) is Small
        for name, matrix in matrices(network.model).items():
            assert np.array_equal(matrix, matrices(sparse.model)[name])


PATTERNS = ("unstructured", "2:4", "1:3", "4x1", "16x1", "16x4", "3x2")


@settings(max_examples=60)
@given(
    st.sampled_from(PATTERNS),
    st.sampled_from(("magnitude", "wanda", "sparsegpt")),
    st.sampled_from([(5, 7), (16, 12), (6, 3, 3, 3), (9, 4, 1, 1)]),
    st.floats(0, 0.99),
    st.integers(0, 9),
)
def test_masks_of_every_pattern_and_criterion(
    pattern: str, criterion: str, shape: tuple[int, ...], share: float, seed: int
) -> None:
    made = torch.Generator().manual_seed(seed)
    weight = torch.randn(shape, generator=made)
    own = pattern_of(pattern)
    layer = Layer("w", weight, Zeros(pattern, None if isinstance(own, NofM) else share, None, criterion))
    x = torch.randn(64, layer.matrix.shape[1], generator=made).double()
    layer.gram = Gram(x.T @ x / 64, x.mean(0), 64)
    mask, matrix = chosen(layer, None)
    assert not matrix[~mask].any()
    if criterion != "sparsegpt":
        assert np.array_equal(matrix[mask], layer.matrix[mask])
    outputs, inputs = matrix.shape
    if isinstance(own, NofM):
        groups = np.pad(mask, ((0, 0), (0, -inputs % own.m))).reshape(outputs, -1, own.m).sum(2)
        assert int(groups.max()) <= own.n
        return
    units = own.units(mask.astype(float))
    assert set(np.unique(units)) <= {0.0, 1.0}
    groups_of_outputs = len(units) if criterion == "wanda" else 1
    missed = share * mask.size - int((~mask).sum())
    assert -1e-6 <= missed <= groups_of_outputs * int(own.sizes(matrix.shape).max())


def test_groups_of_columns_miss_the_share_by_less_than_one_block_in_all() -> None:
    layer = Layer("w", torch.randn(5, 420), Zeros("4x3", 0.35, None, "sparsegpt"))
    layer.gram = Gram(torch.eye(420).double(), torch.zeros(420).double(), 1)
    mask, _ = chosen(layer, None)
    assert 0 <= 0.35 * mask.size - int((~mask).sum()) <= 12


@pytest.mark.usefixtures("quick")
def test_a_global_budget_takes_what_is_lowest_anywhere(small: nn.Module) -> None:
    pruned = pp.sparsify(small, images(), sparsity=0.7, scope="global", ignore=("conv1*",))
    scores = {n: np.abs(m) for n, m in matrices(small).items() if n != "conv1.weight"}
    masks = masks_of({n: Block(1, 1) for n in scores}, scores, 0.7)
    after = matrices(pruned.model)
    assert all(np.array_equal(after[n] != 0, masks[n]) for n in scores)
    assert (after["conv1.weight"] != 0).all()
    again = pp.apply(made(), images(), pruned.plan)
    assert all(np.array_equal(matrices(again.model)[n], after[n]) for n in WEIGHTS)


@pytest.mark.usefixtures("quick")
def test_a_threshold_is_an_absolute_value(small: nn.Module) -> None:
    pruned = pp.sparsify(small, images(), pattern={"fc*": "4x1", "conv2.*": "unstructured"}, threshold=0.1)
    before, after = matrices(small), matrices(pruned.model)
    for name, pattern in (("fc1.weight", "4x1"), ("fc2.weight", "4x1"), ("conv2.weight", "unstructured")):
        assert np.array_equal(after[name] != 0, mask_above(pattern_of(pattern), before[name], 0.1))
    assert np.array_equal(after["conv1.weight"], before["conv1.weight"])
    assert pruned.plan.sparsity["fc1.weight"] == "4x1>0.1"


@pytest.mark.usefixtures("quick")
def test_clipping_leaves_no_zeros(small: nn.Module) -> None:
    pruned = pp.sparsify(small, images(), threshold=0.05, removed="clip")
    before, after = matrices(small)["fc1.weight"], matrices(pruned.model)["fc1.weight"]
    assert float(np.abs(after).min()) >= np.float32(0.05)
    assert np.array_equal(np.sign(after), np.sign(before))
    large = np.abs(before) > 0.05
    assert np.array_equal(after[large], before[large])
    assert pruned.plan.sparsity["fc1.weight"] == "unstructured>0.05 clip"
    assert pp.finetune(pruned, LABELLED, steps=1).plan == pruned.plan


def error(small: nn.Module, pruned: pp.Pruned) -> float:
    with torch.no_grad():
        answers = [(small(x), pruned.model(x)) for x in batches()]
    return float(sum((a - b).square().sum() for a, b in answers)) / float(sum(a.square().sum() for a, _ in answers))


@pytest.mark.usefixtures("quick")
def test_what_looks_at_data_loses_less(small: nn.Module) -> None:
    def lost(**how: Any) -> float:
        return error(small, pp.sparsify(small, images(), pattern="4x1", sparsity=0.5, calibration=batches(), **how))

    plain, updated, folded = lost(), lost(criterion="sparsegpt"), lost(removed="mean")
    assert updated < 0.7 * plain
    assert folded < 0.7 * plain
    assert lost(criterion="obc", removed="mean") < updated


@pytest.mark.usefixtures("quick")
def test_the_mean_goes_into_biases_and_running_means(small: nn.Module) -> None:
    pruned = pp.sparsify(small, images(), sparsity=0.9, pattern="16x1", removed="mean", calibration=batches())
    old, new = tensors_of(small), tensors_of(pruned.model)
    for name in ("norm.running_mean", "conv2.bias", "fc2.bias"):
        assert not torch.equal(old[name], new[name])
    outputs: dict[str, list[Any]] = {}
    for key, model in (("old", small), ("new", pruned.model)):
        hook = model.norm.register_forward_hook(lambda m, x, y, key=key: outputs.setdefault(key, []).append(y))
        with torch.no_grad():
            [model(x) for x in batches()]
        hook.remove()
    means = [torch.cat(outputs[k]).mean((0, 2, 3)) for k in ("old", "new")]
    torch.testing.assert_close(means[0], means[1], rtol=1e-3, atol=1e-3)


def test_wanda_weighs_by_what_enters_output_by_output() -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1)
    scale = torch.tensor([1.0, 20.0, 0.05])[None, :, None, None]
    data = [scale * torch.randn(32, 3, 6, 6, generator=torch.Generator().manual_seed(i)) for i in range(2)]
    pruned = pp.sparsify(conv, data[0][:2], sparsity=2 / 3, criterion="wanda", calibration=data)
    entering = torch.cat([nn.functional.unfold(x, 3, padding=1) for x in data]).transpose(1, 2).flatten(0, 1)
    scores = conv.weight.detach().flatten(1).abs() * entering.square().mean(0).sqrt()
    best = scores.topk(9, dim=1).indices
    assert all(
        set(row.nonzero().flatten().tolist()) == set(b.tolist())
        for row, b in zip(pruned.model.weight.flatten(1), best, strict=True)
    )
    assert bool((pruned.model.weight[:, 1] != 0).float().mean() > 0.9)


def test_weights_that_overlap_in_memory_are_left() -> None:
    net = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.Linear(6, 3))
    net[2].weight = nn.Parameter(net[0].weight.data.T)
    pruned = pp.sparsify(net, torch.ones(2, 6))
    assert set(pruned.plan.sparsity) == {"3.weight"}
    assert "'0.weight' shares memory with '2.weight' in another layout" in " ".join(pruned.notes)


def test_without_a_place_for_the_mean_it_says_so() -> None:
    net = nn.Sequential(nn.Linear(8, 6, bias=False), nn.ReLU(), nn.Linear(6, 4))
    data = [torch.randn(16, 8)]
    pruned = pp.sparsify(net, data[0][:2], removed="mean", calibration=data)
    assert any("'0.weight': no mean was folded in" in n for n in pruned.notes)


def test_a_pruned_network_holds_both(small: nn.Module, tmp_path: Path) -> None:
    cut = pp.prune(small, images(), ratio=0.25)
    both = pp.sparsify(cut, images(), pattern="2:4")
    assert both.plan.kept == cut.plan.kept
    assert both.kept == cut.kept
    assert set(both.plan.sparsity) == set(WEIGHTS)
    again = pp.apply(made(), images(), pp.Plan.from_json(both.plan.to_json()))
    assert all(np.array_equal(a, matrices(again.model)[n]) for n, a in matrices(both.model).items())
    graph = pp.load(pp.save(both, tmp_path / "both"))
    assert all(np.array_equal(a, matrices(graph.model)[n]) for n, a in matrices(both.model).items())
    dense = pp.sparsify(graph, images(), pattern="1:4")
    assert all((m != 0).mean() < 0.35 for m in matrices(dense.model).values())


@pytest.mark.usefixtures("quick")
def test_little_memory_gives_the_same(small: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    how: Any = {"pattern": "4x1", "sparsity": 0.5, "criterion": "sparsegpt", "calibration": batches()}
    whole = pp.sparsify(small, images(), **how)
    monkeypatch.setattr("paretoprune.pipeline.zeros.MEMORY", 8 * 108**2)
    parts = pp.sparsify(small, images(), **how)
    assert all(np.array_equal(m, matrices(parts.model)[n]) for n, m in matrices(whole.model).items())


@pytest.mark.usefixtures("quick")
def test_a_plan_by_wanda_needs_data_again(small: nn.Module) -> None:
    pruned = pp.sparsify(small, images(), sparsity=0.5, criterion="wanda", calibration=batches())
    assert pruned.plan.sparsity["fc1.weight"] == "unstructured@0.5 wanda"
    with pytest.raises(errors.UsageError, match=r"wanda looks at what enters each layer: give calibration="):
        pp.apply(small, images(), pruned.plan)


class Odd(nn.Module):
    """A tied embedding, a depthwise and a transposed convolution, and a weight that two layers share."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(10, 8), nn.Linear(8, 10)
        self.head.weight = self.embed.weight
        self.depthwise, self.up = nn.Conv1d(8, 8, 3, padding=1, groups=8), nn.ConvTranspose1d(8, 8, 2)
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        y = self.up(self.depthwise(self.embed(x).transpose(1, 2))).transpose(1, 2)
        result: Tensor = self.head(self.second(self.first(y).relu()))
        return result


def test_what_is_left_dense_and_why() -> None:
    torch.manual_seed(0)
    net, x = Odd().eval(), torch.arange(12).reshape(2, 6) % 10
    pruned = pp.sparsify(net, x, sparsity=0.5, criterion="wanda", calibration=[x])
    now = tensors_of(pruned.model)
    assert set(pruned.plan.sparsity) == {"depthwise.weight", "first.weight"}
    assert pruned.model.first.weight is pruned.model.second.weight
    assert torch.equal(now["embed.weight"], net.embed.weight)
    text = " | ".join(pruned.notes)
    assert "left dense: 'embed.weight' (aten.embedding reads it, which is no linear layer or convolution)" in text
    assert "'up.weight' (its convolution is transposed)" in text
    assert "by magnitude alone, without looking at data: depthwise.weight, first.weight" in text
    tuned = pp.finetune(pruned, [(x, x)], steps=2, loss=lambda out, batch: out.square().mean())
    assert torch.equal(tensors_of(tuned.model)["first.weight"] == 0, now["first.weight"] == 0)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"sparsity": 1.0}, r"sparsity=1.0: give the share of weights that go, 0 up to below 1"),
        ({"sparsity": -0.1}, r"sparsity=-0.1"),
        ({"sparsity": float("nan")}, r"sparsity=nan"),
        ({"sparsity": True}, r"sparsity=True"),
        ({"threshold": -1.0}, r"threshold=-1.0: give an absolute value"),
        ({"sparsity": 0.5, "threshold": 0.1}, r"sparsity=0.5 and threshold=0.1 are both given"),
        ({"pattern": "2:4", "sparsity": 0.8}, r"sparsity=0.8 with 2:4: it has 0.5"),
        ({"pattern": "4:2"}, r"4:2: of m neighbours"),
        ({"pattern": "blocks"}, r"pattern 'blocks': expected"),
        ({"pattern": {}}, r"pattern=\{\}: name a weight"),
        ({"pattern": {"fc9*": "2:4"}}, r"pattern names 'fc9\*', which fits no weight"),
        ({"pattern": {"fc*": "4x1@1.5"}}, r"4x1@1.5.*from 0 to 1"),
        ({"pattern": 3}, r"pattern=3: give"),
        ({"ignore": ("fc9*",)}, r"ignore names 'fc9\*', which fits no weight; there are 'conv1.weight'"),
        ({"ignore": "fc1*"}, r"ignore='fc1\*': give a list"),
        ({"ignore": ("*",)}, r"no layer is left to hold zeros"),
        ({"criterion": "wanda"}, r"wanda looks at what enters each layer: give calibration="),
        ({"removed": "mean"}, r"removed='mean' looks at what enters"),
        ({"criterion": "l1"}, r"criterion='l1': give one of magnitude, wanda"),
        ({"criterion": "wanda", "threshold": 0.1}, r"threshold=0.1 is of absolute values, and wanda"),
        ({"removed": "clip", "criterion": "obc"}, r"removed='clip'.*criterion='magnitude'"),
        ({"removed": "later", "scope": "global"}, r"removed='later' goes by magnitude"),
        ({"removed": "gone"}, r"removed='gone': give one of zero"),
        ({"scope": "all"}, r"scope='all'"),
        ({"pattern": "2:4", "scope": "global"}, r"one budget for all layers needs one share"),
    ],
)
@pytest.mark.usefixtures("quick")
def test_what_cannot_be_meant_is_refused(small: nn.Module, how: Any, says: str) -> None:
    with pytest.raises(errors.UsageError, match=says):
        pp.sparsify(small, images(), **how)


def test_weights_that_are_not_finite_or_no_numbers_are_refused() -> None:
    net = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        net[0].weight[1, 2] = float("nan")
    with pytest.raises(errors.ModelError, match=r"0\.weight"):
        pp.sparsify(net, torch.ones(2, 4))
    with pytest.raises(errors.ModelError, match="no layer is left to hold zeros: 0 weights"):
        pp.sparsify(nn.Sequential(nn.BatchNorm1d(4)), torch.ones(2, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_types_keep_their_values(dtype: torch.dtype) -> None:
    net = nn.Sequential(nn.Linear(8, 8)).to(dtype)
    weight = pp.sparsify(net, torch.ones(2, 8, dtype=dtype), pattern="2:4").model[0].weight
    assert weight.dtype == dtype
    assert torch.equal(weight[weight != 0], net[0].weight[weight != 0])
    assert int((weight == 0).sum()) == 32


# -- trained -----------------------------------------------------------------------------------------------------------


def zeros(pruned: pp.Pruned) -> dict[str, Any]:
    return {n: m == 0 for n, m in matrices(pruned.model).items()}


@pytest.mark.parametrize("hidden", [False, True])
def test_zeros_hold_through_training(small: nn.Module, sparse: pp.Pruned, hidden: bool) -> None:
    done = pp.distill(sparse, small, LABELLED, steps=6, hidden=hidden, example=images())
    assert all(np.array_equal(zeros(sparse)[n], z) for n, z in zeros(done).items())
    assert not torch.equal(done.model.conv2.weight, sparse.model.conv2.weight)
    assert done.plan == sparse.plan


def test_zeros_hold_through_a_stop_and_a_resume(sparse: pp.Pruned, tmp_path: Path) -> None:
    def stop(step: int, value: float) -> None:
        if step == 5:
            raise KeyboardInterrupt

    def adam(parameters: Any) -> torch.optim.Optimizer:
        return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.5)

    how: Any = {"steps": 10, "optimizer": adam, "checkpoint": tmp_path, "check_every": 2}
    with pytest.raises(KeyboardInterrupt):
        pp.finetune(sparse, LABELLED, on_step=stop, **how)
    done = pp.finetune(sparse, LABELLED, **how)
    assert all(np.array_equal(zeros(sparse)[n], z) for n, z in zeros(done).items())


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("pattern", ["4x1", "2:4"])
def test_zeros_come_in_while_training(small: nn.Module, pattern: str) -> None:
    later = pp.sparsify(small, images(), pattern=pattern, removed="later", ignore=("conv1.weight",))
    assert all(not z.any() for z in zeros(later).values())
    with pytest.raises(errors.UsageError, match="the weights hold none: give zeros='gradual'"):
        pp.finetune(later, LABELLED, steps=2)
    with pytest.raises(errors.UsageError, match="patience"):
        pp.finetune(later, LABELLED, steps=2, zeros="gradual", patience=1, validate=lambda m: 0.0)
    done = pp.finetune(later, LABELLED, steps=12, zeros="gradual")
    at_once = pp.sparsify(small, images(), pattern=pattern)
    for name, found in zeros(done).items():
        assert int(found.sum()) == (0 if name == "conv1.weight" else int(zeros(at_once)[name].sum()))


def test_blocks_move(sparse: pp.Pruned) -> None:
    def rigl(module: nn.Module, wanted: Any) -> Any:
        hooks.append(zero_hooks.rigl(module, wanted, fraction=0.5, every=2))
        return hooks[0]

    hooks: list[Any] = []
    done = pp.finetune(sparse, LABELLED, steps=20, zeros=rigl)
    for name, mask in hooks[0].masks.items():
        after = matrix_of(mask.numpy())
        assert after.sum() == (~zeros(sparse)[name]).sum()
        assert set(np.unique(Block(4, 1).units(after.astype(float)))) <= {0.0, 1.0}
        assert not (matrices(done.model)[name][~after]).any()
    assert any((zeros(sparse)[n] != z).any() for n, z in zeros(done).items())
    with pytest.raises(errors.UsageError, match="moves single weights and blocks, and 'conv1.weight' has 2:4"):
        zero_hooks.rigl(made(), {"conv1.weight": Zeros("2:4")})
    with pytest.raises(errors.UsageError, match="no plan says where"):
        pp.finetune(made(), LABELLED, steps=2, zeros="rigl")


# -- the plan ----------------------------------------------------------------------------------------------------------


@settings(max_examples=30)
@given(
    st.sampled_from(("unstructured", "16x1", "4x4")),
    st.floats(0, 1) | st.none(),
    st.floats(0, 1e3),
    st.sampled_from(("magnitude", "wanda", "sparsegpt")),
    st.sampled_from(("zero", "clip", "mean")),
)
def test_a_text_says_it_all(pattern: str, share: float | None, cut: float, criterion: str, removed: str) -> None:
    zeros = Zeros(pattern, share, cut if share is None else None, criterion, removed)
    assert Zeros.parse(str(zeros)) == zeros


@pytest.mark.parametrize(
    "text", ["", "16x1", "2:4@0.5", "16x1@1.5", "16x1@0.5>0.1", "16x1@1.2.3", "16x1@0.5 taylor", "x"]
)
def test_a_plan_with_a_wrong_text_is_refused(text: str) -> None:
    with pytest.raises(errors.PlanError, match="zeros "):
        pp.Plan.from_json({"schema": 5, "kept": {}, "sparsity": {"a": text}})


@pytest.mark.usefixtures("quick")
def test_a_plan_for_layers_that_are_not_there_is_refused(small: nn.Module) -> None:
    with pytest.raises(errors.PlanError, match=r"sparsity names 'head\*'"):
        pp.apply(small, images(), pp.Plan(sparsity={"head*": "2:4"}))
    pruned = pp.apply(small, images(), {"schema": 5, "kept": {}, "sparsity": {"fc*": "2:4", "*": "4x1@0.5"}})
    assert (matrices(pruned.model)["fc1.weight"] == 0).mean() == 0.5
    assert pp.Plan.from_json({"schema": 4, "kept": {}}).sparsity == {}
