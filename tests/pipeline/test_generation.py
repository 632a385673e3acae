"""Pruned language models generate: with and without their cache, by themselves, and what the original would say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import paretoprune as pp
from language_models import first, ids, inputs, make, silenced

slow = pytest.mark.slow
MODELS = ["llama", *(pytest.param(n, marks=slow) for n in ("gpt2", "opt", "t5", "mixtral"))]


def said(model: Any, prompt: Tensor, **options: Any) -> Tensor:
    torch.manual_seed(0)
    mask = torch.ones_like(prompt)
    given = {"min_new_tokens": 8, "max_new_tokens": 8, "do_sample": False, "attention_mask": mask, **options}
    result: Tensor = model.generate(prompt, **given)
    return result


@pytest.mark.parametrize("name", MODELS)
def test_the_words_are_those_of_the_silenced_original(name: str) -> None:
    model = make(name)
    pruned = pp.prune(model, inputs(name), ratio=0.5, axes="inner", dynamic={"input_ids": [1]})
    assert type(pruned.model) is type(model)
    reference = silenced(make(name), pruned.kept)
    torch.testing.assert_close(first(pruned.model, inputs(name)), first(reference, inputs(name)), rtol=1e-3, atol=1e-4)
    for prompt in (ids(2, 4, seed=5), ids(1, 9, seed=6)):
        greedy = said(pruned.model, prompt)
        assert greedy.shape[-1] >= 8
        assert torch.equal(greedy, said(pruned.model, prompt, use_cache=False)), "the cache changes the words"
        assert torch.equal(greedy, said(reference, prompt))
        options = {"do_sample": True, "top_k": 0, "temperature": 0.7}
        assert torch.equal(said(pruned.model, prompt, **options), said(reference, prompt, **options))
    assert torch.equal(
        said(pruned.model, ids(2, 4, seed=5), num_beams=2), said(reference, ids(2, 4, seed=5), num_beams=2)
    )


@slow
def test_whisper_writes_down() -> None:
    model, given = make("whisper"), inputs("whisper")
    pruned = pp.prune(model, given, ratio=0.5, axes="inner")
    reference = silenced(make("whisper"), pruned.kept)
    options = {"max_new_tokens": 6, "do_sample": False, "language": None}
    sound = given["input_features"]
    assert torch.equal(pruned.model.generate(sound, **options), reference.generate(sound, **options))


@slow
def test_removing_heads_that_say_nothing_changes_no_word(tmp_path: Path) -> None:
    """And the network that was saved and loaded says the same."""
    model = make("llama")
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.v_proj.weight[:8] = 0  # the first of two groups, of heads of 8
            layer.self_attn.k_proj.weight[:8] *= 0.01
            layer.self_attn.q_proj.weight[:16] *= 0.01
            layer.self_attn.o_proj.weight[:, :16] = 0
    prompt = ids(2, 5, seed=3)
    before = said(model, prompt)
    pruned = pp.prune(model, inputs("llama"), ratio=0.5, axes=lambda a: a.kind in ("heads", "kv groups"))
    assert pruned.model.model.layers[0].self_attn.k_proj.weight.shape == (8, 32)
    assert torch.equal(said(pruned.model, prompt), before)
    loaded = pp.load(pp.save(pruned, tmp_path / "small"))
    assert type(loaded.model) is type(model)
    assert torch.equal(said(loaded.model, prompt), before)


class Coded(nn.Module):
    """A feed-forward layer whose width stands in the code: no attribute can be set."""

    def __init__(self, of: Any) -> None:
        super().__init__()
        self.up, self.down = of.up_proj, of.down_proj

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.relu(self.up(x)).reshape(-1, 24)
        result: Tensor = self.down(wide).reshape(x.shape)
        return result


@slow
def test_where_only_the_graph_can_hold_it_the_length_stays_dynamic(tmp_path: Path) -> None:
    model = make("llama")
    model.model.layers[0].mlp = Coded(model.model.layers[0].mlp)
    pruned = pp.prune(model, {"input_ids": ids()}, ratio=0.5, dynamic={"input_ids": [1]})
    assert isinstance(pruned.model, fx.GraphModule)
    assert "LlamaForCausalLM cannot hold it" in pruned.notes[-1]
    assert "its forward fails at the new sizes in 'model.layers.0.mlp' at `wide = torch.relu" in pruned.notes[-1]
    reference = silenced(model, pruned.kept)
    loaded = pp.load(pp.save(pruned, tmp_path / "small"))
    for batch, length in ((1, 3), (3, 12), (2, 7)):
        given = {"input_ids": ids(batch, length, seed=length)}
        expected = first(reference, {**given, "use_cache": False})
        torch.testing.assert_close(first(pruned.model, given), expected, rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(first(loaded.model, given), expected, rtol=1e-3, atol=1e-4)
    for refusing in (pruned.model, loaded.model):
        with pytest.raises(pp.errors.ModelError, match=r"a rewritten graph, which has no generate\(\)") as error:
            refusing.generate(ids(), max_new_tokens=2)
        assert "self.up(x)).reshape(-1, 24)" in str(error.value)
        assert "dynamic={'input_ids': [1]} makes the length of the sequence dynamic" in str(error.value)
