"""Recurrent networks: one hidden axis per module, whatever its layers and directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from paretoprune import graph as graphs
from paretoprune.core.plan import Plan

SEQUENCE = torch.randn(2, 5, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def net(tools: Any) -> Callable[..., nn.Module]:
    """In double precision: an initial state of zeros is born in the type that the network was captured in."""
    return lambda forward, **parts: tools.Net(forward, **parts).double()


def last(m: Any, x: torch.Tensor) -> Any:
    return m.out(m.rnn(m.into(x))[0][:, -1])


def all_steps(m: Any, x: torch.Tensor) -> Any:
    return m.out(m.rnn(m.into(x))[0])


def lstm_states(m: Any, x: torch.Tensor) -> Any:
    y, (h, c) = m.rnn(m.into(x))
    return m.out(y).sum(1) + m.state(h[-1]) + m.state(c[0])


def gru_states(m: Any, x: torch.Tensor) -> Any:
    y, h = m.rnn(m.into(x))
    return m.out(y).sum(1) + m.state(torch.cat([h[-2], h[-1]], -1))


def time_first(m: Any, x: torch.Tensor) -> Any:
    return m.out(m.rnn(m.into(x).transpose(0, 1))[0].transpose(0, 1))


def network(rnn: nn.RNNBase, wide: int, **more: nn.Module) -> dict[str, Any]:
    return {"into": nn.Linear(6, 4), "rnn": rnn, "out": nn.Linear(wide, 3), **more}


# Each case: parts, forward, the prunable axes with their sizes.
CASES: dict[str, tuple[dict[str, Any], Callable[..., Any], dict[str, int]]] = {
    "lstm": (network(nn.LSTM(4, 5, batch_first=True), 5), last, {"into": 4, "rnn": 5}),
    "lstm of two layers": (
        network(nn.LSTM(4, 5, 2, batch_first=True, dropout=0.2), 5),
        all_steps,
        {"into": 4, "rnn": 5},
    ),
    "lstm both ways": (
        network(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True), 10),
        all_steps,
        {"into": 4, "rnn": 5},
    ),
    "lstm projected": (
        network(nn.LSTM(4, 5, 2, batch_first=True, bidirectional=True, proj_size=3), 6),
        all_steps,
        {"into": 4, "rnn": 5, "rnn#2": 3},
    ),
    "lstm without bias": (network(nn.LSTM(4, 5, bias=False, batch_first=True), 5), all_steps, {"into": 4, "rnn": 5}),
    "lstm time first": (network(nn.LSTM(4, 5), 5), time_first, {"into": 4, "rnn": 5}),
    "lstm states": (
        network(nn.LSTM(4, 5, batch_first=True), 3, out=nn.Linear(5, 3), state=nn.Linear(5, 3)),
        lstm_states,
        {"into": 4, "rnn": 5},
    ),
    "gru": (network(nn.GRU(4, 5, batch_first=True), 5), last, {"into": 4, "rnn": 5}),
    "gru both ways with states": (
        network(nn.GRU(4, 5, 2, batch_first=True, bidirectional=True), 10, state=nn.Linear(10, 3)),
        gru_states,
        {"into": 4, "rnn": 5},
    ),
    "rnn": (network(nn.RNN(4, 5, batch_first=True), 5), all_steps, {"into": 4, "rnn": 5}),
    "rnn with relu": (
        network(nn.RNN(4, 5, 2, nonlinearity="relu", batch_first=True), 5),
        all_steps,
        {"into": 4, "rnn": 5},
    ),
}


LONGEST = ("lstm of two layers", "lstm without bias", "gru both ways with states", "rnn with relu")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LONGEST else name for name in CASES]
)
def test_sequences(name: str, net: Any, tools: Any) -> None:
    parts, forward, axes = CASES[name]
    model = net(forward, **parts)
    graph = tools.prove(model, SEQUENCE)
    assert tools.prunable(graph) == axes
    assert not graph.notes


def stepped(m: Any, x: torch.Tensor) -> Any:
    state = None
    for t in range(x.shape[1]):
        state = m.cell(m.into(x[:, t]), state)
    return m.out(state[0] if isinstance(state, tuple) else state)


@pytest.mark.parametrize("cell", [nn.LSTMCell(4, 5), nn.GRUCell(4, 5), nn.RNNCell(4, 5), nn.LSTMCell(4, 5, bias=False)])
def test_cells_in_a_loop(cell: nn.Module, net: Any, tools: Any) -> None:
    model = net(stepped, into=nn.Linear(6, 4), cell=cell, out=nn.Linear(5, 3))
    assert tools.prunable(tools.prove(model, SEQUENCE)) == {"into": 4, "cell": 5}


def learned(m: Any, x: torch.Tensor) -> Any:
    h, c = (s[:, None].expand(1, x.shape[0], 5).contiguous() for s in (m.h, m.c))
    return m.out(m.rnn(m.into(x), (h, c))[0])


def test_a_learned_initial_state_is_cut_too(net: Any, tools: Any) -> None:
    parts = network(nn.LSTM(4, 5, batch_first=True), 5)
    model = net(learned, **parts, h=nn.Parameter(torch.randn(1, 5)), c=nn.Parameter(torch.randn(1, 5)))
    graph = tools.prove(model, SEQUENCE)
    assert {m.name for a in graph.axes if a.prunable and a.size == 5 for m in a.members} >= {"h", "c", "out.weight"}


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_memory_that_does_not_start_at_zero_is_seen_in_a_sum(kind: Any, net: Any, tools: Any) -> None:
    """A removed unit gives half of its initial memory, which no weight turns to zero."""

    def forward(m: Any, x: torch.Tensor) -> Any:
        ones = x.new_ones(1, x.shape[0], 5)
        start = (torch.zeros_like(ones), ones) if isinstance(m.rnn, nn.LSTM) else ones
        y = m.rnn(x, start)[0]
        return m.out(y) * y.sum(-1, keepdim=True)

    graph = tools.prove(net(forward, rnn=kind(6, 5, batch_first=True), out=nn.Linear(5, 3)), SEQUENCE)
    assert "it is summed up" in tools.why(graph, "out.weight", 1)


def test_a_zero_memory_may_be_summed_up(net: Any, tools: Any) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        y = m.rnn(x)[0]
        return m.out(y) * y.sum(-1, keepdim=True)

    for rnn in (nn.LSTM(6, 5, batch_first=True), nn.GRU(6, 5, batch_first=True), nn.RNN(6, 5, batch_first=True)):
        graph = tools.prove(net(forward, rnn=rnn, out=nn.Linear(5, 3)), SEQUENCE)
        assert tools.prunable(graph) == {"rnn": 5}


def test_steps_are_frozen_and_samples_pass(net: Any, tools: Any) -> None:
    def forward(m: Any, x: torch.Tensor) -> Any:
        return m.out(m.rnn(m.steps(x.transpose(1, 2)).transpose(1, 2))[0].mean(1))

    model = net(forward, steps=nn.Linear(5, 7), rnn=nn.GRU(6, 5, batch_first=True), out=nn.Linear(5, 3))
    graph = tools.prove(model, SEQUENCE)
    assert "its positions are steps of a sequence" in tools.why(graph, "steps.weight", 0)


def test_macs_of_a_projected_lstm() -> None:
    model = nn.LSTM(6, 5, 2, batch_first=True, bidirectional=True, proj_size=3).double()
    wide = 5 * 2 * (4 * 5 * 6 + 4 * 5 * 3 + 3 * 5) + 5 * 2 * (4 * 5 * 6 + 4 * 5 * 3 + 3 * 5)
    assert graphs.trace(model, SEQUENCE).macs() == wide


def test_dropout_between_layers_follows_train(net: Any, tools: Any) -> None:
    rnn = nn.LSTM(4, 5, 2, batch_first=True, dropout=0.5)
    model = tools.randomise(net(all_steps, **network(rnn, 5)))
    graph = graphs.trace(model, SEQUENCE)
    assert not graph.notes
    pruned = graphs.cut(graph, Plan({"rnn": (0, 2, 3)})).program.module
    torch.manual_seed(0)
    assert torch.equal(pruned(SEQUENCE), pruned(SEQUENCE))
    pruned.train()
    assert not torch.equal(pruned(SEQUENCE), pruned(SEQUENCE))
