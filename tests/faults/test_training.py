"""FAULTS, while weights are trained: 20, 23, 26, 37, 39, 43, 45 in `pp.finetune` and `pp.distill`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

import paretoprune as pp
from paretoprune.core.errors import DataError, PruneError, UsageError

pytestmark = pytest.mark.fault
X = torch.zeros(2, 6)


def normed() -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 3))


def batches(size: int = 16) -> list[tuple[Tensor, Tensor]]:
    made = torch.Generator().manual_seed(1)
    xs = [torch.randn(size, 6, generator=made) for _ in range(4)]
    return [(x, x[:, :3].argmax(1)) for x in xs]


def tune(model: Any, data: Any, **options: Any) -> Any:
    return pp.finetune(model, data, **{"steps": 8, **options})


def distil(model: Any, data: Any, **options: Any) -> Any:
    return pp.distill(model, normed(), data, **{"steps": 8, **options})


TRAIN = pytest.mark.parametrize(("train", "name"), [(tune, "fine-tuning"), (distil, "distillation")])


def refused(kept: Any, model: nn.Module, kind: type[PruneError], *words: str, work: Callable[[], Any]) -> None:
    """One line, and the network as it was."""
    with kept.unchanged(model), pytest.raises(kind) as error:
        work()
    text = str(error.value)
    assert "\n" not in text
    for word in words:
        assert word in text, text


@TRAIN
def test_20_nan_in_training(kept: Any, train: Any, name: str) -> None:
    model, data = normed(), batches()
    data[2] = (data[2][0] * float("nan"), data[2][1])
    words = (f"{name}: the loss is nan at step", "lower lr=0.02 or check the batches")
    refused(kept, model, PruneError, *words, work=lambda: train(model, data))


@TRAIN
def test_20_weights_that_blow_up(kept: Any, train: Any, name: str) -> None:
    model = normed()
    refused(kept, model, PruneError, name, "lower lr=1e+38", work=lambda: train(model, batches(), lr=1e38))


def test_20_an_infinite_penalty(kept: Any) -> None:
    class Wall:
        def penalty(self, step: int, steps: int) -> Tensor:
            return torch.tensor(1.0) if step < 3 else torch.tensor(float("inf"))

        def after_step(self, step: int, steps: int) -> None: ...

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Any) -> None: ...

    model = normed()
    refused(kept, model, PruneError, "the loss is inf at step 3", work=lambda: tune(model, batches(), hooks=[Wall()]))


@TRAIN
def test_23_batch_norm_with_batches_of_one_sample(kept: Any, train: Any, name: str) -> None:
    model = normed()
    words = (f"{name}: batch norm needs batches of at least 2 samples", "drop or enlarge them")
    refused(kept, model, DataError, *words, work=lambda: train(model, batches(size=1)))
    alone = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    assert not torch.equal(train(alone, batches(size=1))[0].weight, alone[0].weight), "without batch norm it is sound"


@TRAIN
@pytest.mark.parametrize("listed", [True, False])
def test_23_a_last_batch_of_one_sample_is_left_out(kept: Any, train: Any, name: str, listed: bool) -> None:
    many = torch.randn(49, 6)
    labels = many[:, :3].argmax(1)
    data: Any = list(zip(many.split(16), labels.split(16), strict=True))
    loader: Any = data if listed else DataLoader(list(zip(many, labels, strict=True)), batch_size=16)  # type: ignore[arg-type]
    model = normed()
    with kept.unchanged(model):
        assert not torch.equal(train(model, loader)[0].weight, model[0].weight)


@TRAIN
def test_26_frozen_parameters_stay_frozen(kept: Any, train: Any, name: str) -> None:
    model = normed()
    model[0].weight.requires_grad_(False)
    model[1].bias.requires_grad_(False)
    pruned = pp.prune(model, X, ratio=0.5)
    with kept.unchanged(pruned.model):
        done = train(pruned, batches())
    for network in (done.model, done.program.module):
        held, before = dict(network.named_parameters()), dict(pruned.model.named_parameters())
        frozen = [n for n, p in held.items() if not p.requires_grad]
        assert frozen == ["0.weight", "1.bias"]
        still = {n for n, p in held.items() if torch.equal(p, before[n])}
        assert still - {"0.bias"} == set(frozen), "a bias before a batch norm has no gradient"
    for p in model.parameters():
        p.requires_grad_(False)
    refused(kept, model, UsageError, "no parameter that requires gradients", work=lambda: train(model, batches()))


def test_26_frozen_parameters_stay_frozen_block_by_block(kept: Any) -> None:
    model = normed()
    model[0].weight.requires_grad_(False)
    pruned = pp.prune(model, X, ratio=0.5)
    done = pp.distill(pruned, model, batches(), steps=3, blockwise=True)
    assert [n for n, p in done.model.named_parameters() if not p.requires_grad] == ["0.weight"]
    assert torch.equal(done.model[0].weight, pruned.model[0].weight)
    assert not torch.equal(done.model[4].weight, pruned.model[4].weight)


@TRAIN
def test_37_the_network_keeps_modes_gradients_hooks_and_random_state(kept: Any, train: Any, name: str) -> None:
    model = normed().train()
    model[3].eval()
    model(torch.randn(4, 6)).sum().backward()
    handle = model[0].register_forward_hook(lambda *_: None)
    with kept.unchanged(model):
        train(model, batches())
    handle.remove()


@TRAIN
@pytest.mark.parametrize("empty", [[], DataLoader([])])  # type: ignore[arg-type]
def test_39_empty_loader(kept: Any, train: Any, name: str, empty: Any) -> None:
    model = normed()
    refused(kept, model, DataError, f"{name}: no training batch", work=lambda: train(model, empty))


class Broken(Dataset[Any]):
    """Sample 9 cannot be read."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> Any:
        if index == 9:
            raise OSError("image_9.jpg is truncated")
        return torch.full((6,), float(index)), index % 3


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@TRAIN
@pytest.mark.parametrize("workers", [0, 1])
def test_43_an_exception_in_a_loader_shows_index_and_cause(kept: Any, train: Any, name: str, workers: int) -> None:
    model, loader = normed(), DataLoader(Broken(), batch_size=4, num_workers=workers)
    words = f"{name}: reading batch 2 failed with OSError: image_9.jpg is truncated"
    with kept.unchanged(model), pytest.raises(DataError) as error:
        train(model, loader)
    assert str(error.value) == words
    assert isinstance(error.value.__cause__, OSError)


@TRAIN
def test_43_an_exception_in_a_sequence_shows_index_and_cause(kept: Any, train: Any, name: str) -> None:
    class Files(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            if index == 3:
                raise OSError("image_3.jpg is truncated")
            return super().__getitem__(index)

    model = normed()
    words = f"{name}: reading batch 3 failed with OSError: image_3.jpg is truncated"
    refused(kept, model, DataError, words, work=lambda: train(model, Files(batches())))


@TRAIN
def test_45_a_one_shot_generator_is_refused_unread(kept: Any, train: Any, name: str) -> None:
    read = []

    def generator() -> Iterator[Any]:
        for batch in batches():
            read.append(1)
            yield batch

    model = normed()
    words = (f"{name}: the batches can be read only once (generator)", "give a list, a DataLoader")
    refused(kept, model, DataError, *words, work=lambda: train(model, generator()))
    assert not read


def test_40_labels_out_of_range_show_the_number_of_classes(kept: Any) -> None:
    model = normed()
    wrong = [(x, y + 100) for x, y in batches()]
    for work in (tune, distil):
        refused(kept, model, DataError, "labels run from", "classes", work=lambda work=work: work(model, wrong))


def test_batches_without_labels_say_what_else_there_is(kept: Any) -> None:
    model = normed()
    unlabelled = [x for x, _ in batches()]
    words = ("a batch has no labels", "distill from the network before pruning", "a loss of your own")
    refused(kept, model, DataError, *words, work=lambda: tune(model, unlabelled))
    assert distil(copy.deepcopy(model), unlabelled) is not None
