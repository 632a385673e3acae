"""How fast a language model's file gives tokens: the first after a prompt, and each after that."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx.helper
from numpy.typing import NDArray
from onnx import ValueInfoProto

from paretoprune.core.errors import TargetError, UsageError
from paretoprune.core.measurement import Measurement
from paretoprune.core.protocols import Runner, Target
from paretoprune.targets.fingerprint import fingerprint_id
from paretoprune.targets.interval import Floats, Series, median
from paretoprune.targets.load import LoadWatch
from paretoprune.targets.onnx_file import read_model
from paretoprune.targets.serving import figure, percentile

GENERATIONS = 20
MIN_GENERATIONS = 5
MAX_S = 5.0
"""Wall seconds; at least MIN_GENERATIONS are made."""
_IDS, _MASK, _POSITIONS, _TYPES, _PAST = "input_ids", "attention_mask", "position_ids", "token_type_ids", "past"

Array = NDArray[Any]


def token_latency(
    target: Target,
    path: Path,
    prompt: int,
    new: int,
    *,
    generations: int = GENERATIONS,
    max_s: float = MAX_S,
) -> dict[str, Measurement]:
    """Wall times of greedy generation: `new` tokens after a prompt of `prompt` random tokens, batch 1.

    "first_token_ms": from the prompt to the first token. "per_token_ms" and "per_token_p95_ms": each token after that
    (left out for new=1, the tail also where too few were made). "tokens_per_s": new tokens over the time of a whole
    generation, the prompt's included. The file takes token ids (batch, sequence), of any length, and gives logits
    (batch, sequence, vocabulary) first. A file without a key-value cache ("past_key_values…" in, "present…" out)
    computes the whole sequence again for each token, and the notes say so.

    Raises UsageError for counts below 1 and for a file of another kind, TargetError where it does not run.
    """
    check_counts((prompt, new))
    model = LanguageModel.open(target, path)
    ids, watch = model.random_ids(prompt), LoadWatch()
    model.generate(ids, min(new, 2))
    taken: list[Floats] = []
    started = time.perf_counter()
    while len(taken) < generations:
        taken.append(model.generate(ids, new))
        if time.perf_counter() - started > max_s and len(taken) >= MIN_GENERATIONS:
            break
    found = _figures(np.stack(taken), _note(model, prompt, new, watch.note(target.threads)))
    mark = fingerprint_id(target.fingerprint())
    return {name: replace(value, target=mark) for name, value in found.items()}


def check_counts(tokens: Sequence[int]) -> tuple[int, int]:
    """(prompt, new). Raises UsageError for anything but two whole numbers of at least 1."""
    counts = tuple(tokens)
    if len(counts) != 2 or any(not isinstance(n, int) or isinstance(n, bool) or n < 1 for n in counts):
        raise UsageError(f"tokens={counts}: give the prompt's and the new tokens as whole numbers, e.g. (128, 32)")
    return counts[0], counts[1]


def _figures(times: Floats, note: str) -> dict[str, Measurement]:
    """`times`: (generations, tokens) in ms."""
    found = {"first_token_ms": figure(Series(times[:, 0], median, 1), "ms", note)}
    if times.shape[1] > 1:
        later = times[:, 1:].reshape(-1)
        found["per_token_ms"] = figure(Series(later, median, times.shape[1] - 1), "ms", note)
        tail = percentile(later, 95, note)
        found |= {} if tail is None else {"per_token_p95_ms": tail}
    rates = 1e3 * times.shape[1] / times.sum(axis=1)
    return {**found, "tokens_per_s": figure(Series(rates, median, 1), "1/s", note)}


def _note(model: LanguageModel, prompt: int, new: int, busy: str) -> str:
    how = "key-value cache" if model.cache else "no key-value cache in the file: each token computes the sequence again"
    return "; ".join(text for text in (f"prompt of {prompt}, {new} new tokens, batch 1; {how}", busy) if text)


def prompt_feed(path: Path, prompt: int) -> dict[str, Array]:
    """A prompt of token 0 by input name, for a file that `token_latency` takes."""
    model = LanguageModel.read(path)
    return model.feed(np.zeros((1, prompt), np.int64), model.empty_cache())


@dataclass(frozen=True)
class LanguageModel:
    """A file that makes tokens. `cache`: the names of its caches, those that go in with those that come out."""

    path: Path
    inputs: Mapping[str, ValueInfoProto]
    cache: Mapping[str, int]
    runner: Runner | None = None

    @classmethod
    def open(cls, target: Target, path: Path) -> LanguageModel:
        return replace(cls.read(path), runner=target.load(path))

    @classmethod
    def read(cls, path: Path) -> LanguageModel:
        """Raises UsageError for a file that does not look like a language model's."""
        if Path(path).suffix != ".onnx":
            raise UsageError(f"{path}: tokens= reads what an ONNX file (.onnx) takes and gives; give one")
        graph = read_model(path)[0].graph
        constants = {tensor.name for tensor in graph.initializer}
        inputs = {value.name: value for value in graph.input if value.name not in constants}
        odd = [n for n in inputs if n not in (_IDS, _MASK, _POSITIONS, _TYPES) and not n.startswith(_PAST)]
        if odd or _IDS not in inputs:
            raise UsageError(
                f"{path} takes {', '.join(inputs)}: tokens= is for a language model that takes {_IDS} and, of "
                f"{_MASK}, {_POSITIONS}, {_TYPES} and {_PAST}_key_values…, what it needs"
            )
        sizes = inputs[_IDS].type.tensor_type.shape.dim
        if len(sizes) == 2 and sizes[1].dim_value:
            raise UsageError(
                f"{path}: its sequences have {sizes[1].dim_value} tokens each; generation needs a file exported with a "
                "dynamic sequence length (dimension 1 of input_ids)"
            )
        caches = [name for name in inputs if name.startswith(_PAST)]
        outputs = [value.name for value in graph.output]
        return cls(Path(path), inputs, {name: _comes_out(name, outputs, path) for name in caches})

    def random_ids(self, count: int) -> Array:
        """(1, count), seeded, from the whole vocabulary."""
        logits, _ = self._run(np.zeros((1, count), np.int64), self.empty_cache())
        return np.random.default_rng(0).integers(0, logits.shape[-1], (1, count))

    def generate(self, ids: Array, new: int) -> Floats:
        """(new,) ms per token, the likeliest each time."""
        cache, fed, taken = self.empty_cache(), ids, []
        for _ in range(new):
            start = time.perf_counter()
            logits, cache = self._run(fed, cache)
            token = np.argmax(logits[:, -1], axis=-1).reshape(1, 1)
            taken.append(1e3 * (time.perf_counter() - start))
            fed = token if self.cache else np.concatenate([fed, token], axis=1)
        return np.asarray(taken, dtype=np.float64)

    def empty_cache(self) -> dict[str, Array]:
        """Batch 1; the open dimension of each is that of the tokens seen."""
        empty = {}
        for name in self.cache:
            tensor = self.inputs[name].type.tensor_type
            shape = [1, *(dim.dim_value for dim in tensor.shape.dim[1:])]
            empty[name] = np.zeros(shape, onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type))
        return empty

    def feed(self, ids: Array, cache: Mapping[str, Array]) -> dict[str, Array]:
        count = ids.shape[1]
        seen = _seen(self.inputs, cache)
        given = {
            _IDS: ids,
            _MASK: np.ones((1, seen + count)),
            _POSITIONS: np.arange(seen, seen + count).reshape(1, -1),
            _TYPES: np.zeros((1, count)),
        }
        plain = {name: value.astype(self._dtype(name)) for name, value in given.items() if name in self.inputs}
        return {**plain, **cache}

    def _dtype(self, name: str) -> Any:
        return onnx.helper.tensor_dtype_to_np_dtype(self.inputs[name].type.tensor_type.elem_type)

    def _run(self, ids: Array, cache: Mapping[str, Array]) -> tuple[Array, dict[str, Array]]:
        assert self.runner is not None
        outputs = self.runner(self.feed(ids, cache))
        if outputs[0].ndim != 3:
            raise TargetError(
                f"{self.path} gives {outputs[0].shape} first; expected logits (batch, sequence, vocabulary)"
            )
        return outputs[0], {name: outputs[place] for name, place in self.cache.items()}


def _seen(inputs: Mapping[str, ValueInfoProto], cache: Mapping[str, Array]) -> int:
    """Tokens that a cache holds: the size of its open dimension."""
    for name, array in cache.items():
        sizes = inputs[name].type.tensor_type.shape.dim
        for place, dim in enumerate(sizes):
            if place and not dim.dim_value:
                return int(array.shape[place])
    return 0


def _comes_out(name: str, outputs: Sequence[str], path: Path) -> int:
    """The place of the output that goes in as `name` with the next token."""
    wanted = [name.replace("past_key_values", "present"), name.replace("past", "present")]
    for each in wanted:
        if each in outputs:
            return outputs.index(each)
    raise UsageError(f"{path} takes the cache {name!r} and gives none called {wanted[0]!r}; there are {list(outputs)}")
