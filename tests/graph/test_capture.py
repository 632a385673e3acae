"""What can be captured, and how what cannot is explained: the user's own line, why, and what helps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import paretoprune as pp
from paretoprune.core.errors import CaptureError, DataError, ModelError, PruneError

X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))


class Small(nn.Module):
    """`forward` is a function of the module and its inputs; "a" has 8 units."""

    def __init__(self, forward: Callable[..., Any]) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.function = forward

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(self, *args, **kwargs)


def plain(m: Any, x: Tensor) -> Tensor:
    y: Tensor = m.b(F.relu(m.a(x)))
    return y


def refused(model: nn.Module, example: Any, *words: str, kind: type[PruneError] = CaptureError, **options: Any) -> str:
    """The one sentence of the refusal; the model is as before."""
    before, modes = copy.deepcopy(model.state_dict()), [m.training for m in model.modules()]
    with pytest.raises(kind) as error:
        pp.trace(model, example, **options)
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text
    assert [m.training for m in model.modules()] == modes
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, before[name])
    return text


def open_axes(graph: Any) -> dict[str, int]:
    return {a.id: a.size for a in graph.axes if a.prunable}


# -- forwards that no graph can hold ---------------------------------------------------------------------------------


@torch.library.custom_op("paretoprune_tests::doubled", mutates_args=())
def doubled(x: Tensor) -> Tensor:
    return x * 2


def branch(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    if h.sum() > 0:
        h = -h
    return m.b(h)


def loop(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    for value in x[0]:
        h = h + 1 if value > 0 else h
    return m.b(h)


def counted(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    for _ in range(int(x.abs().sum())):
        h = h + 1
    return m.b(h)


def array(m: Any, x: Tensor) -> Any:
    h = m.a(x).detach().numpy()
    return m.b(torch.from_numpy(np.tanh(h)))


def attempted(m: Any, x: Tensor) -> Any:
    try:
        if x.sum() > 0:
            raise ValueError
        return m.b(m.a(x))
    except ValueError:
        return m.b(m.a(-x))


def formatted(m: Any, x: Tensor) -> Any:
    h = m.a(x)
    print(f"{h.mean():.3f}")
    return m.b(h)


def asserted(m: Any, x: Tensor) -> Any:
    assert torch.isfinite(x).all()
    return m.b(m.a(x))


def unknown_operator(m: Any, x: Tensor) -> Any:
    return m.b(doubled(m.a(x)))


@pytest.mark.parametrize(
    ("forward", "code", "why", "remedy"),
    [
        (branch, "if h.sum() > 0:", "a branch depends on the data", "torch.where"),
        (loop, "h = h + 1 if value > 0 else h", "a branch depends on the data", "torch.where"),
        (counted, "for _ in range(int(x.abs().sum())):", "used as a Python number", "keep it a tensor"),
        (array, "h = m.a(x).detach().numpy()", "a tensor leaves PyTorch", "write that step with torch operators"),
        (attempted, "if x.sum() > 0:", "a branch depends on the data", "torch.where"),
        (formatted, 'print(f"{h.mean():.3f}")', "written into a text", "take the print or log out"),
        (asserted, "assert torch.isfinite(x).all()", "a branch depends on the data", "torch.where"),
        (unknown_operator, "return m.b(doubled(m.a(x)))", "does not say what shape it gives", "register_fake"),
    ],
)
def test_a_refusal_names_the_users_line_the_reason_and_a_remedy(
    forward: Callable[..., Any], code: str, why: str, remedy: str
) -> None:
    text = refused(Small(forward), X, "Small cannot be captured", why, remedy, f": {code};")
    assert f"at {__file__}:" in text
    assert "'a' on (2, 6)" in text.partition("captured by themselves")[2]


def test_the_number_of_the_line_is_right() -> None:
    text = refused(Small(branch), X)
    number = int(text.partition(f"{__file__}:")[2].partition(":")[0])
    with open(__file__, encoding="utf-8") as file:
        assert file.readlines()[number - 1].strip() == "if h.sum() > 0:"


def test_a_line_of_the_standard_library_is_not_the_users() -> None:
    import statistics

    text = refused(Small(lambda m, x: m.b(m.a(x)) * statistics.mean([v > 0 for v in x[0]])), X)
    assert "statistics.py" not in text
    assert __file__ in text


def test_a_branch_that_a_try_hides_from_the_exporter_is_noticed() -> None:
    """On the example itself both ways give the same."""

    def hidden(m: Any, x: Tensor) -> Any:
        h = m.a(x)
        try:
            if x.sum() > 0:
                h = h * 2
        except Exception:  # noqa: BLE001 - that is the point
            pass
        return m.b(F.relu(h))

    refused(Small(hidden), -X.abs(), "other values than the network", "a try hides a failed step")


def test_random_numbers_that_are_not_torchs_are_noticed() -> None:
    random = np.random.default_rng(0)
    refused(Small(lambda m, x: plain(m, x) * random.random()), X, "random numbers that are not torch's")
    graph = pp.trace(Small(lambda m, x: plain(m, x) * torch.rand(1)), X)
    assert any("gives random outputs" in n for n in graph.notes)


def test_state_that_changes_with_every_call_is_noticed() -> None:
    def counting(m: Any, x: Tensor) -> Any:
        m.calls = getattr(m, "calls", 0) + 1
        return plain(m, x) * m.calls

    refused(Small(counting), X, "it depends on hidden state")


@pytest.mark.parametrize(
    ("forward", "says"),
    [
        (lambda m, x: plain(m, x) / len(x), "fixes the batch size"),
        (lambda m, x: torch.stack([plain(m, row) for row in x]), "fixes the batch size"),
        (lambda m, x: plain(m, x.view(2, 6)), "x.shape[0] or -1"),
    ],
)
def test_a_fixed_batch_size_is_refused(forward: Callable[..., Any], says: str) -> None:
    refused(Small(forward), X, says)


# -- forwards that look as if none could -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.b(F.relu(m.a(x)) * x.max().item()),
        lambda m, x: m.b(F.relu(m.a(x)) + x.mean(0).tolist()[0]),
        lambda m, x: m.b(F.relu(m.a(x))[x.sum(1) > -100]),
        lambda m, x: (print(x), plain(m, x))[1],
    ],
    ids=["item", "tolist", "boolean index", "print"],
)
def test_values_that_stay_in_the_graph(forward: Callable[..., Any]) -> None:
    model = Small(forward)
    pruned = pp.prune(model, X, ratio=0.5)
    assert pruned.program.module(X * 3).shape == (2, 3)
    same = pp.apply(model, X, pp.Plan()).program.module
    for inputs in (X, -2 * X):
        torch.testing.assert_close(same(inputs), model(inputs))


def test_a_try_in_which_nothing_fails() -> None:
    def safe(m: Any, x: Tensor) -> Any:
        try:
            return plain(m, x)
        except RuntimeError:
            return plain(m, x[:, :6])

    assert open_axes(pp.trace(Small(safe), X)) == {"a": 8}


def test_an_operator_without_a_rule_is_listed_by_name() -> None:
    graph = pp.trace(Small(lambda m, x: torch.cdist(m.a(x), m.a(x)).sum(1, keepdim=True) + m.b(m.a(x))), X)
    assert open_axes(graph) == {}
    assert any("cdist has no rule (aten.cdist.default): what it touches stays" in n for n in graph.notes)
    assert any("known to hold where dimension 0 of " in n for n in graph.notes)  # another kernel from 26 rows on


# -- inputs and outputs ----------------------------------------------------------------------------------------------


@dataclass
class Pair:
    x: Tensor
    scale: float = 2.0


class Two(NamedTuple):
    x: Tensor
    y: Tensor


class Holder:
    def __init__(self, x: Tensor) -> None:
        self.x = x


@pytest.mark.parametrize(
    ("forward", "example"),
    [
        (lambda m, xs: plain(m, xs[0] + xs[1]), ([X, X + 1],)),
        (lambda m, d: plain(m, d["p"] + d["q"][0]), ({"p": X, "q": [X, None]},)),
        (lambda m, p: plain(m, p.x * p.scale), (Pair(X),)),
        (lambda m, t: plain(m, t.x - t.y), (Two(X, X + 1),)),
        (lambda m, x, mask=None: plain(m, x) if mask is None else plain(m, x * mask), (X, None)),
        (lambda m, x, k=None: plain(m, x) if k is None else plain(m, x * k), {"x": X, "k": None}),
        (lambda m, *, y, x: plain(m, x - y), {"x": X, "y": X + 1}),
        (lambda m, x, twice=False: plain(m, x) * (2 if twice else 1), (X, True)),
        (lambda m, x: plain(m, x), X.clone().requires_grad_()),
    ],
    ids=["list", "dict", "dataclass", "named tuple", "None", "None by keyword", "keywords", "flag", "requires grad"],
)
def test_inputs_of_every_structure(forward: Callable[..., Any], example: Any) -> None:
    model = Small(forward)
    pruned = pp.prune(model, example, ratio=0.5)
    assert pruned.model.a.weight.shape == (4, 6)
    args, kwargs = ((), example) if isinstance(example, dict) else (example, {})
    args = args if isinstance(args, tuple) else (args,)
    torch.testing.assert_close(pruned.model(*args, **kwargs), pruned.program.module(*args, **kwargs))


def test_what_the_graph_holds_for_alone_is_said() -> None:
    notes = pp.trace(Small(lambda m, x, twice: plain(m, x) * (2 if twice else 1)), (X, True)).notes
    assert "the graph holds for input_1=True only" in notes

    @dataclass
    class Unseen:  # torch is told of a dataclass once a process
        x: Tensor

    notes = pp.trace(Small(lambda m, p: plain(m, p.x)), (Unseen(X),)).notes
    assert any("dataclass Unseen was registered" in n for n in notes)


@pytest.mark.parametrize(
    "wrap",
    [lambda y: Pair(y), lambda y: Two(y, y * 2), lambda y: {"y": [y, None]}, lambda y: (3, y)],
    ids=["dataclass", "named tuple", "dict", "number"],
)
def test_outputs_of_every_structure(wrap: Callable[[Any], Any]) -> None:
    model = Small(lambda m, x: wrap(plain(m, x)))
    assert type(pp.prune(model, X, ratio=0.5).program.module(X)) is type(model(X))


def test_outputs_without_a_tensor_to_see() -> None:
    refused(Small(lambda m, x: Holder(plain(m, x))), X, "returns a Holder", "tuples, lists, dicts or a dataclass")
    refused(Small(lambda m, x: (None, 3)), X, "returns no tensor (NoneType, int)", "return what it computes")
    refused(Small(lambda m, x: []), X, "returns no tensor (list)")


def transformers_class(name: str) -> Any:
    library = pytest.importorskip("transformers")
    try:
        return getattr(library, name)
    except (ImportError, RuntimeError) as error:  # what it needs is broken here
        pytest.skip(f"transformers.{name}: {error}")


def test_a_model_output_keeps_its_fields() -> None:
    kind = transformers_class("modeling_outputs").BaseModelOutput
    pruned = pp.prune(Small(lambda m, x: kind(last_hidden_state=plain(m, x))), X, ratio=0.5)
    assert pruned.model(X).last_hidden_state.shape == (2, 3)
    assert pruned.program.module(X)["last_hidden_state"].shape == (2, 3)


def test_a_cache_that_comes_out_is_refused_with_what_helps() -> None:
    cache = transformers_class("DynamicCache")

    def cached(m: Any, x: Tensor) -> Any:
        kept = cache()
        kept.update(m.a(x)[:, None, None], m.a(x)[:, None, None], 0)
        return plain(m, x), kept

    refused(Small(cached), X, "a DynamicCache goes in or out", "use_cache=False")


def test_a_language_model_is_captured_without_its_cache() -> None:
    config = transformers_class("GPT2Config")(
        n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=16, bos_token_id=0, eos_token_id=0
    )
    model = transformers_class("GPT2LMHeadModel")(config).eval()
    ids = torch.randint(0, 20, (2, 5))
    graph = pp.trace(model, {"input_ids": ids})
    assert any("no key-value cache" in n for n in graph.notes)
    assert model.config.use_cache
    with torch.no_grad():
        given = model(input_ids=ids, use_cache=True).past_key_values
    example = {"input_ids": ids[:, :1], "past_key_values": given}
    refused(model, example, "a DynamicCache goes in or out", "use_cache=False")


# -- examples that do not fit ----------------------------------------------------------------------------------------


class Named(Small):
    """With a signature to name."""

    def forward(self, x: Tensor, *, scale: Tensor | None = None) -> Any:  # type: ignore[override]
        return plain(self, x if scale is None else x * scale)


@pytest.mark.parametrize(
    ("example", "kind", "words"),
    [
        ((X, X), CaptureError, ("forward takes (x, *, scale=None), the example gives 2 positional input(s)", "dict")),
        ({"z": X}, CaptureError, ("the example gives keyword(s) z", "missing a required argument: 'x'")),
        ({"x": X, "z": X}, CaptureError, ("keyword(s) x, z", "unexpected keyword argument 'z'")),
        (X.double(), CaptureError, ("input is torch.float64 and the parameters are torch.float32", ".to(")),
        (X.long(), CaptureError, ("input is torch.int64 and the parameters are torch.float32",)),
        (X.to(torch.complex64), CaptureError, ("cannot run on the example (input: (2, 6) torch.complex64)",)),
        (X[:, :5], CaptureError, ("cannot run on the example (input: (2, 5)", "shape and type that forward expects")),
        (X[0], CaptureError, ("has no batch dimension", "one sample of shape (6,)", "give (1, 6) with .unsqueeze(0)")),
        (X.to("meta"), ModelError, ("input is on meta and parameter 'a.weight' on cpu", ".to(device)")),
        (X.numpy(), DataError, ("input is a numpy.ndarray", "torch.as_tensor()")),
        (X.to_sparse(), DataError, ("input is a sparse tensor", ".to_dense()")),
        (X * float("nan"), DataError, ("input holds 12 NaN or infinite value(s) of 12",)),
        (Holder(X), DataError, ("the example holds no tensor but Holder",)),
        (({X},), DataError, ("the example holds no tensor but set",)),
        (None, DataError, ("the example holds no tensor:",)),
        ("text", DataError, ("the example holds no tensor but str",)),
    ],
    ids=lambda v: None,
)
def test_an_example_that_does_not_fit(example: Any, kind: type[PruneError], words: tuple[str, ...]) -> None:
    refused(Named(plain), example, *words, kind=kind)


def test_an_additive_mask_may_hold_minus_infinity() -> None:
    mask = torch.zeros(2, 3)
    mask[:, 1] = float("-inf")
    model = Small(lambda m, x, mask: (plain(m, x) + mask).softmax(-1))
    assert open_axes(pp.trace(model, (X, mask))) == {"a": 8}


@pytest.mark.parametrize(
    ("layers", "example"),
    [
        ([nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3)], torch.randn(3, 8, 8)),
        ([nn.Conv2d(1, 8, 3), nn.Conv2d(8, 2, 3)], torch.randn(1, 8, 8)),
        ([nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 3)], torch.randn(3, 8, 8)),
        ([nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(288, 2)], torch.randn(3, 8, 8)),
        ([nn.Linear(6, 8), nn.Linear(8, 2)], torch.randn(6)),
    ],
)
def test_an_example_without_a_batch_dimension(layers: list[nn.Module], example: Tensor) -> None:
    shape = tuple(example.shape)
    model = nn.Sequential(*layers).eval()
    refused(model, example, "has no batch dimension", f"shape {shape}", f"give {(1, *shape)} with .unsqueeze(0)")
    assert open_axes(pp.trace(model, example.unsqueeze(0))) == {"0": 8}


def test_a_wrong_image_is_no_sample_without_a_batch() -> None:
    layers = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 3))
    text = refused(layers, torch.randn(2, 8, 8, 3), "to have 3 channels, but got 8")
    assert "batch dimension" not in text
