"""The user's own class at the new sizes: which attribute becomes what, and what it may never become."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune import graph as graphs
from paretoprune.core.errors import FileError
from paretoprune.core.plan import Plan
from paretoprune.graph import Edits
from paretoprune.graph.narrow import NarrowAttention, narrowed

ROW = torch.randn(2, 6, generator=torch.Generator().manual_seed(2))
TOKENS = torch.randn(2, 5, 16, generator=torch.Generator().manual_seed(3))


class Attention(nn.Module):
    """Heads of `d` entries each, with a scale of its own or the one that its forward derives."""

    def __init__(self, heads: int = 4, head_dim: int = 4, dim: int = 16, derived: bool = False):
        super().__init__()
        self.num_heads, self.head_dim, self.inner_dim = heads, head_dim, heads * head_dim
        self.dim, self.scale, self.derived = dim, head_dim**-0.5, derived
        self.qkv = nn.Linear(dim, 3 * self.inner_dim)
        self.out = nn.Linear(self.inner_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        b, t, _ = x.shape
        q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        scale = self.head_dim**-0.5 if self.derived else self.scale
        y = (q @ k.transpose(-2, -1) * scale).softmax(-1) @ v
        result: Tensor = self.out(y.transpose(1, 2).reshape(b, t, self.inner_dim))
        return result


def half(graph: graphs.TracedGraph, *kinds: str, ids: tuple[str, ...] = ()) -> Plan:
    """The first half of every prunable axis of these kinds, or of these ids, goes."""
    chosen = [a for a in graph.axes if a.prunable and a.size > 1 and (a.kind in kinds or a.id in ids)]
    assert chosen, [(a.id, a.kind, a.why) for a in graph.axes]
    return Plan({a.id: tuple(range(a.size // 2, a.size)) for a in chosen})


def rebuilt(model: nn.Module, example: Any, *kinds: str, **k: Any) -> tuple[graphs.Rebuilt, graphs.Cut]:
    graph = graphs.trace(model, example)
    plan = half(graph, *kinds, **k)
    graphs.check(graph, plan)
    cut = graphs.cut(graph, plan)
    return graphs.rebuilt(model, graph, cut), cut


def same(one: nn.Module, other: nn.Module, example: Any) -> None:
    args = example if isinstance(example, tuple) else (example,)
    torch.testing.assert_close(one(*args), other(*args), rtol=1e-4, atol=1e-5)


# -- integers of the user's own modules ------------------------------------------------------------------------------


def test_head_counts_follow_and_equal_sizes_stay_apart() -> None:
    """Heads and head size are both 4; only the heads are pruned."""
    model = Attention().eval()
    result, cut = rebuilt(model, TOKENS, "heads")
    own: Any = result.module
    assert own is not None, result.why
    assert (own.num_heads, own.head_dim, own.inner_dim, own.dim, own.scale) == (2, 4, 8, 16, 0.5)
    assert (own.qkv.out_features, own.out.in_features) == (24, 8)
    same(own, cut.program.module, TOKENS)
    assert (model.num_heads, model.qkv.out_features) == (4, 48)


class Nameless(nn.Module):
    """The same with names that say nothing, in a tuple, a list and a private attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self._b, self.c = (4, 4), [16, 16, 16], 16
        self.one, self.two = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.one(x).split(self._b, -1)
        q, k, v = (p.reshape(*x.shape[:2], *self.a).transpose(1, 2) for p in parts)
        y = (q @ k.transpose(-2, -1)).softmax(-1) @ v
        result: Tensor = self.two(y.transpose(1, 2).reshape(*x.shape[:2], self.c))
        return result


def test_names_that_say_nothing() -> None:
    result, cut = rebuilt(Nameless().eval(), TOKENS, "heads")
    own: Any = result.module
    assert own is not None, result.why
    assert (own.a, own._b, own.c) == ((2, 4), [8, 8, 8], 8)
    same(own, cut.program.module, TOKENS)


def test_numbers_that_only_equal_a_width_stay() -> None:
    class Coincidence(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.num_classes, self.layer_idx, self.max_length, self.patch_size, self.beta = 8, 8, 8, (8, 8), 8.0
            self.hidden, self.flag = 8, True
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.two(F.relu(self.one(x)))
            return result

    result, _ = rebuilt(Coincidence().eval(), ROW, "channel")
    own: Any = result.module
    assert own is not None, result.why
    assert (own.num_classes, own.layer_idx, own.max_length, own.patch_size, own.beta) == (8, 8, 8, (8, 8), 8.0)
    assert (own.hidden, own.flag) == (4, True)


def test_a_scale_that_forward_derives_is_caught() -> None:
    """With weights as small as here the scale hardly shows: random ones have to tell."""
    model = Attention(derived=True).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.mul_(0.01)
    before = {n: p.clone() for n, p in model.named_parameters()}
    result, cut = rebuilt(model, TOKENS, "head size")
    assert result.module is None
    assert "gives other values than the rewritten graph at the new sizes" in result.why
    for name, value in graphs.tensors_of(cut.program.module).items():
        rows = cut.kept[name]
        assert torch.equal(value, graphs.slice_tensor(before[name], rows)), "random weights were left behind"
    held, _ = rebuilt(Attention().eval(), TOKENS, "head size")
    assert held.module is not None, held.why


def test_a_fused_attention_with_a_scale_of_its_own_is_unfused() -> None:
    class Fused(Attention):
        def __init__(self) -> None:
            super().__init__()
            self.fused_attn = True

        def forward(self, x: Tensor) -> Tensor:
            if not self.fused_attn:
                return super().forward(x)
            b, t, _ = x.shape
            q, k, v = self.qkv(x).reshape(b, t, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
            y = F.scaled_dot_product_attention(q, k, v)
            result: Tensor = self.out(y.transpose(1, 2).reshape(b, t, self.inner_dim))
            return result

    result, _ = rebuilt(Fused().eval(), TOKENS, "head size")
    own: Any = result.module
    assert own is not None, result.why
    assert (own.fused_attn, own.scale, own.head_dim) == (False, 0.5, 2)
    heads, _ = rebuilt(Fused().eval(), TOKENS, "heads")
    assert heads.module is not None
    assert heads.module.fused_attn is True


def test_a_number_in_forward_is_named_with_module_and_line() -> None:
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.two(self.one(x).view(-1, 8))
            return result

    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Fixed()

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.inner(x)
            return result

    result, cut = rebuilt(Outer().eval(), ROW, "channel")
    assert result.module is None
    assert "in 'inner' at `result: Tensor = self.two(self.one(x).view(-1, 8))`" in result.why
    assert cut.program.module(ROW).shape == (2, 3)


# -- settings that modules share ---------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Frozen:
    n_head: int = 4
    head_dim: int = 4
    n_embd: int = 16
    n_layer: int = 2


def namespace() -> Any:
    return SimpleNamespace(n_head=4, head_dim=4, n_embd=16, n_layer=2)


def dictionary() -> Any:
    return {"n_head": 4, "head_dim": 4, "n_embd": 16, "n_layer": 2}


def field(settings: Any, name: str) -> Any:
    return settings[name] if isinstance(settings, dict) else getattr(settings, name)


class Layer(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        inner = field(config, "n_head") * field(config, "head_dim")
        self.qkv, self.out = nn.Linear(field(config, "n_embd"), 3 * inner), nn.Linear(inner, field(config, "n_embd"))

    def forward(self, x: Tensor) -> Tensor:
        shape = (*x.shape[:2], 3, field(self.config, "n_head"), field(self.config, "head_dim"))
        q, k, v = self.qkv(x).reshape(shape).permute(2, 0, 3, 1, 4).unbind(0)
        y = (q @ k.transpose(-2, -1) * 0.5).softmax(-1) @ v
        result: Tensor = x + self.out(y.transpose(1, 2).flatten(2))
        return result


class Stack(nn.Module):
    def __init__(self, config: Any):
        super().__init__()
        self.config = config
        self.layers = nn.ModuleList(Layer(config) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x


SETTINGS = pytest.mark.parametrize("make", [Frozen, namespace, dictionary])


@SETTINGS
def test_settings_on_which_all_layers_agree_are_edited_once(make: Callable[[], Any]) -> None:
    config = make()
    model = Stack(config).eval()
    result, cut = rebuilt(model, TOKENS, "heads")
    own: Any = result.module
    assert own is not None, result.why
    assert own.config is own.layers[0].config is own.layers[1].config
    assert [field(own.config, n) for n in ("n_head", "head_dim", "n_embd", "n_layer")] == [2, 4, 16, 2]
    assert field(config, "n_head") == 4, "the caller's own settings were edited"
    assert model.config is config
    same(own, cut.program.module, TOKENS)


@SETTINGS
def test_layers_that_differ_get_settings_of_their_own(make: Callable[[], Any]) -> None:
    result, cut = rebuilt(Stack(make()).eval(), TOKENS, ids=("layers.1.qkv#2",))
    own: Any = result.module
    assert own is not None, result.why
    assert [field(layer.config, "n_head") for layer in own.layers] == [4, 2]
    assert field(own.config, "n_head") == 4
    same(own, cut.program.module, TOKENS)


# -- torch's own layers ------------------------------------------------------------------------------------------------


class Recurrent(nn.Module):
    def __init__(self, kind: str, **options: Any):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.rnn = getattr(nn, kind)(8, 12, batch_first=True, **options)
        width = (options.get("proj_size") or 12) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.rnn(self.embed(x))[0])
        return result


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"num_layers": 2, "bidirectional": True}),
        ("LSTM", {"proj_size": 4}),
        ("GRU", {"num_layers": 2}),
        ("RNN", {"nonlinearity": "relu", "bidirectional": True}),
    ],
)
def test_recurrent_layers(kind: str, options: dict[str, Any]) -> None:
    ids = torch.randint(0, 20, (2, 5))
    result, cut = rebuilt(Recurrent(kind, **options).eval(), ids, "rnn hidden", "embedding")
    own: Any = result.module
    assert own is not None, result.why
    assert (own.rnn.hidden_size, own.rnn.input_size, own.embed.embedding_dim) == (6, 4, 4)
    if "proj_size" in options:
        assert own.rnn.proj_size == own.rnn.weight_hr_l0.shape[0] == own.out.in_features
    assert all(a is b for a, b in zip(own.rnn._flat_weights, own.rnn.parameters(), strict=True))
    same(own, cut.program.module, ids)
    trained = copy.deepcopy(own).train()
    trained(ids).square().sum().backward()
    before = trained.rnn.weight_hh_l0.detach().clone()
    torch.optim.SGD(trained.parameters(), 0.1).step()
    assert not torch.equal(before, trained.rnn._flat_weights[1]), "training moves another list of weights"


def test_other_layers_say_their_sizes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(6, 8)
            self.join, self.act, self.split = nn.Bilinear(8, 8, 8), nn.PReLU(8), nn.Unflatten(1, (8, 1))
            self.conv, self.norm, self.out = nn.ConvTranspose1d(8, 4, 2), nn.GroupNorm(4, 4), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.split(self.act(self.join(self.a(x).tanh(), self.b(x).tanh())))
            result: Tensor = self.out(self.norm(self.conv(y)).flatten(1))
            return result

    result, _ = rebuilt(Mixed().eval(), ROW, "channel", "within")
    own: Any = result.module
    assert own is not None, result.why
    assert (own.a.out_features, own.b.out_features, own.join.in1_features, own.join.in2_features) == (4, 4, 4, 4)
    assert (own.join.out_features, own.act.num_parameters, own.split.unflattened_size) == (4, 4, (4, 1))
    assert (own.conv.in_channels, own.conv.out_channels) == (4, own.norm.num_channels)
    assert own.out.in_features == own.out.weight.shape[1]


# -- nn.MultiheadAttention ---------------------------------------------------------------------------------------------


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    layer = nn.MultiheadAttention(16, 4, **options).eval()
    with torch.no_grad():
        for p in layer.parameters():
            p.copy_(torch.randn(p.shape) * 0.5)
    return layer


CAUSAL = torch.ones(5, 5, dtype=torch.bool).triu(1)
PADDING = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
CALLS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no weights": {"need_weights": False},
    "weights of every head": {"average_attn_weights": False},
    "a mask": {"attn_mask": CAUSAL},
    "a mask of numbers": {"attn_mask": torch.randn(5, 5)},
    "a mask of every head": {"attn_mask": torch.randn(8, 5, 5), "need_weights": False},
    "padding": {"key_padding_mask": PADDING},
    "both": {"key_padding_mask": PADDING, "attn_mask": CAUSAL, "need_weights": False},
    "causal": {"attn_mask": CAUSAL, "is_causal": True, "need_weights": False},
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False, "kdim": 16, "vdim": 12}])
def test_the_narrow_attention_is_torchs_own_where_both_exist(name: str, options: dict[str, Any]) -> None:
    layer = attention(**options)
    query = torch.randn(2, 5, 16) if options.get("batch_first") else torch.randn(5, 2, 16)
    value = torch.randn(*query.shape[:2], 12) if "vdim" in options else query
    with torch.backends.mha.set_fastpath_enabled(False) or torch.no_grad():
        want = layer(query, query, value, **CALLS[name])
    torch.backends.mha.set_fastpath_enabled(True)
    got = narrowed(layer, 4, 4, 0.5)(query, query, value, **CALLS[name])
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_the_narrow_attention_on_one_sample_and_in_training() -> None:
    layer = attention(dropout=0.5)
    narrow, x = narrowed(layer, 4, 4, 0.5), torch.randn(5, 16)
    torch.testing.assert_close(narrow(x, x, x), layer(x, x, x), rtol=1e-4, atol=1e-5)
    narrow.train()
    assert not torch.equal(narrow(x, x, x)[0], narrow(x, x, x)[0]), "dropout is gone"
    with pytest.raises(RuntimeError, match="4 matrices for 1 samples of 4 heads|3 matrices"):
        narrow(x, x, x, attn_mask=torch.zeros(3, 5, 5))


@pytest.fixture
def encoder() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape) * 0.3 + (p.ndim == 1))
    return model


@pytest.mark.parametrize("kinds", [("heads",), ("head size",), ("heads", "head size", "residual", "channel")])
def test_heads_that_no_longer_fill_the_embedding(encoder: nn.Module, kinds: tuple[str, ...]) -> None:
    result, cut = rebuilt(encoder, TOKENS, *kinds)
    own: Any = result.module
    assert own is not None, result.why
    assert type(own) is nn.TransformerEncoder
    layer = own.layers[0].self_attn
    assert isinstance(layer, NarrowAttention)
    assert layer.scale == 0.5
    assert layer.num_heads * layer.head_dim == layer.out_proj.in_features
    assert layer.embed_dim == layer.kdim == layer.out_proj.out_features
    assert own.state_dict().keys() == encoder.state_dict().keys()
    for module in (own, copy.deepcopy(own)):
        same(module, cut.program.module, TOKENS)
        with torch.no_grad():  # torch's fused kernel, which knows nothing of it, must not be taken
            same(module, cut.program.module, TOKENS)
            module(TOKENS, src_key_padding_mask=PADDING)


def test_an_attention_that_torch_can_hold_stays_torchs_own() -> None:
    """Half of the heads and just as much of the embedding."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.i, self.att, self.o = nn.Linear(6, 16), nn.MultiheadAttention(16, 4), nn.Linear(16, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.i(x).tanh()
            result: Tensor = self.o(self.att(y, y, y, need_weights=False)[0])
            return result

    model = Model().eval()
    x = torch.randn(5, 2, 6)
    graph = graphs.trace(model, x)
    wanted = {"heads": 4, "channel": 16, "residual": 16}
    plan = half(graph, *wanted)
    cut = graphs.cut(graph, plan)
    own: Any = graphs.rebuilt(model, graph, cut).module
    assert own is not None
    assert type(own.att) is nn.MultiheadAttention
    assert (own.att.embed_dim, own.att.num_heads, own.att.kdim, own.att.vdim, own.att.head_dim) == (8, 2, 8, 8, 4)
    same(own, cut.program.module, x)


# -- one network in memory ---------------------------------------------------------------------------------------------


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(6, 8), nn.Linear(6, 8)
        self.two.weight = self.one.weight
        self.norm, self.drop, self.out = nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3)
        self.one.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.out(self.drop(self.norm(F.relu(self.one(x)) + F.relu(self.two(-x)))))
        return result


def test_names_ties_modes_and_what_is_trained_are_kept() -> None:
    model = Tied()
    model.drop.eval()
    result, cut = rebuilt(model, ROW, "channel", "residual")
    own: Any = result.module
    assert own is not None, result.why
    assert own.two.weight is own.one.weight
    assert list(own.state_dict()) == list(model.state_dict())
    assert [n for n, p in own.named_parameters() if not p.requires_grad] == ["one.bias"]
    assert (own.training, own.drop.training, own.norm.training) == (True, False, True)
    theirs = graphs.tensors_of(cut.program.module)
    assert all(t.data_ptr() == theirs[n].data_ptr() for n, t in graphs.tensors_of(own).items()), "a second copy"
    mine = {t.data_ptr() for t in graphs.tensors_of(model).values()}
    assert not mine & {t.data_ptr() for t in graphs.tensors_of(own).values()}, "the caller's own memory"


def test_it_trains_copies_moves_and_exports(tmp_path: Path) -> None:
    result, cut = rebuilt(Attention().eval(), TOKENS, "heads")
    own: Any = result.module
    other = copy.deepcopy(own).train()
    other(TOKENS).square().sum().backward()
    torch.optim.SGD(other.parameters(), 0.1).step()
    assert not torch.equal(other.qkv.weight, own.qkv.weight)
    assert copy.deepcopy(own).to("meta")(TOKENS.to("meta")).shape == TOKENS.shape
    assert copy.deepcopy(own).double()(TOKENS.double()).dtype == torch.float64
    path = str(tmp_path / "m.onnx")
    axes = {"x": {0: "batch"}, "y": {0: "batch"}}
    torch.onnx.export(own, (TOKENS,), path, dynamo=False, input_names=["x"], output_names=["y"], dynamic_axes=axes)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    x = torch.randn(3, 5, 16)
    (got,) = session.run(None, {"x": x.numpy()})
    np.testing.assert_allclose(got, cut.program.module(x).detach().numpy(), rtol=1e-4, atol=1e-5)


# -- edits as data -----------------------------------------------------------------------------------------------------


def test_edits_make_a_fresh_network_the_pruned_one(encoder: nn.Module) -> None:
    for model, kinds in ((encoder, ("heads", "channel")), (Stack(Frozen()).eval(), ("heads",))):
        result, cut = rebuilt(model, TOKENS, *kinds)
        edits = Edits.from_json(result.edits.to_json())
        assert edits == result.edits
        fresh = copy.deepcopy(model)
        graphs.put_tensors(fresh, graphs.tensors_of(cut.program.module))
        graphs.apply_edits(fresh, edits)
        same(fresh.eval(), cut.program.module, TOKENS)


@pytest.mark.parametrize(
    "edit",
    [
        ["nowhere", "num_heads", "", 2],
        ["", "scale", "", 2],
        ["", "derived", "", 2],
        ["", "num_heads", "", [2, 2]],
        ["", "missing", "", 2],
        ["", "qkv", "", 2],
        ["", "num_heads", "", "2"],
        ["", "num_heads", "", 2.0],
        ["", "__class__", "", 2],
        ["", "", "", 2],
        ["", "num_heads", "", 2, 3],
    ],
)
def test_an_edit_that_is_no_integer_of_the_network(edit: list[Any]) -> None:
    model = Attention()
    before = {k: v for k, v in vars(model).items() if not k.startswith("_")}
    with pytest.raises((FileError, ValueError)):
        graphs.apply_edits(model, Edits.from_json({"values": [edit], "narrow": []}))
    assert {k: v for k, v in vars(model).items() if not k.startswith("_")} == before


class Remembering(nn.Module):
    """Biases of an attention that are looked up once in eval mode, as timm has it."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 3)
        self.biases = nn.Parameter(torch.randn(8, 4))
        self.register_buffer("index", torch.tensor([1, 3, 0]))
        self.remembered: dict[str, torch.Tensor] = {}

    def train(self, mode: bool = True) -> Remembering:
        if mode:
            self.remembered = {}
        return super().train(mode)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if "biases" not in self.remembered:
            self.remembered["biases"] = self.biases[:, self.index]
        return self.down(torch.relu(self.up(x) + self.remembered["biases"].sum(1)))


@pytest.mark.parametrize("gradients", [False, True])
def test_what_a_network_remembers_of_earlier_calls_is_left_out(gradients: bool) -> None:
    model, x = Remembering().eval(), torch.randn(2, 6)
    with torch.set_grad_enabled(gradients):
        model(x)
    held = model.remembered["biases"]
    pruned = pp.prune(model, x, ratio=0.5)
    assert model.remembered["biases"] is held
    small: Any = pruned.model
    assert type(small) is Remembering
    assert small.biases.shape == (4, 4)
    assert not small.remembered
    again = copy.deepcopy(small)
    torch.testing.assert_close(again(x), pruned.program.module(x))
