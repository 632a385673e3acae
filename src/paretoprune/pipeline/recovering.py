"""`pp.finetune` and `pp.distill`: a network goes in, a trained copy of it comes out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar, Unpack

import torch
from torch import nn

from paretoprune import frameworks, recover
from paretoprune.core.copies import duplicate
from paretoprune.core.errors import ModelError, UsageError
from paretoprune.core.protocols import Task
from paretoprune.graph import check_sound, tensors_of
from paretoprune.pipeline.handing_back import with_values
from paretoprune.pipeline.inside import HIDDEN_WEIGHT, Places, by_blocks, pair_of_graphs, pair_of_modules
from paretoprune.pipeline.pruned import Pruned
from paretoprune.pipeline.zero_hooks import MakeHook, zero_hooks
from paretoprune.recover import Training
from paretoprune.recover.distill import ALPHA, TEMPERATURE
from paretoprune.recover.loop import Loss
from paretoprune.recover.losses import OwnLoss, OwnStep
from paretoprune.recover.optimizing import sgd
from paretoprune.recover.training import LR
from paretoprune.tasks import task_of

Given = TypeVar("Given", Pruned, nn.Module)


def finetune(
    network: Given,
    batches: Iterable[Any],
    *,
    task: str | Task = "classification",
    steps: int | None = None,
    epochs: int | None = None,
    lr: float = LR,
    loss: OwnLoss | None = None,
    step: OwnStep | None = None,
    zeros: str | MakeHook = "held",
    **training: Unpack[Training],
) -> Given:
    """Train a copy of `network` (a Pruned or a module) on labelled batches; the given one is not changed.

    `batches`: an iterable of (x, y) or dicts that can be read again. Either `steps` or `epochs` says for how long.
    The loss is the task's, or `loss(output, batch)`, or `step(module, batch)` that calls the network itself; a batch is
    given to them as it came, on `device`. `lr` is of the default optimizer. Further keywords, above all `device`,
    `precision`, `optimizer`, `scheduler`, `checkpoint`, `validate` and `patience`: see `recover.train`. Without
    patience the last weights are the result, never the best.

    `zeros`, of a network whose plan speaks of them (`pp.sparsify`): "held", they stay; "gradual", they come in along a
    cubic schedule to what the plan says, and are held for the last quarter; "rigl", of single weights and blocks, weak
    ones go and others come where the gradient is large. `pipeline.zero_hooks` has the functions, whose keywords
    `functools.partial` sets: zeros=partial(rigl, fraction=0.2, every=50).

    Raises UsageError, ModelError, DataError, FileError for a checkpoint of another training, PruneError for a loss that
    is not finite.
    """
    given, count = _one_of(task, loss, step), steps_of(steps, epochs, batches)
    return _trained(network, given, batches, count, "fine-tuning", options_of(training, lr), zeros)


def distill(
    student: Given,
    teacher: nn.Module,
    batches: Iterable[Any],
    *,
    task: str | Task | None = "classification",
    steps: int | None = None,
    epochs: int | None = None,
    lr: float = LR,
    temperature: float = TEMPERATURE,
    alpha: float = ALPHA,
    hidden: Places = False,
    hidden_weight: float = HIDDEN_WEIGHT,
    blockwise: bool = False,
    example: Any = None,
    dynamic: Mapping[str, Iterable[int]] | None = None,
    zeros: str | MakeHook = "held",
    **training: Unpack[Training],
) -> Given:
    """Train a copy of `student` (a Pruned or a module) to answer like `teacher`; neither is changed.

    alpha · T² · KL(teacher ‖ student) + (1 - alpha) · the task's loss where batches have labels (Hinton et al. 2015);
    without a task, or where answers are no classes, the mean squared error in place of the first.

    `hidden`: add `hidden_weight` times the relative squared error of activations inside (Romero et al. 2015, FitNets).
    True: at the sums of the residual blocks, or where there are none at the layers; a list: at these nodes of the graph
    (of two modules: at these submodules). The teacher must be the network that was pruned: its activations are cut to
    the positions that were kept. `blockwise`: instead of all at once, the parameters up to each of these places are
    trained on it alone, one place after the other, `steps` each; the rest then on the answers. `example` and `dynamic`
    as for `prune`, where the Pruned does not know its example. The rest is as in `finetune`.
    """
    place = torch.device(training.get("device", "cpu"))
    meaning = None if task is None else task_of(task)
    about = {"temperature": temperature, "alpha": alpha, "hidden": hidden_weight if hidden or blockwise else None}
    count, options = steps_of(steps, epochs, batches), options_of(training, lr)
    if not hidden and not blockwise:
        goal = recover.SoftTargets(recover.frozen_copy(teacher, place), meaning, temperature, alpha)
        return _trained(student, goal, batches, count, "distillation", options, zeros, about)
    if isinstance(student, Pruned):
        pair = pair_of_graphs(student, teacher, hidden or True, example, dynamic, place)
    else:
        pair = pair_of_modules(private(student), teacher, hidden, place)
    soft = recover.SoftTargets(pair.hidden.teacher, meaning, temperature, alpha)
    with keeping(student, pair.student, zeros, options) as how:
        if blockwise:
            by_blocks(pair, soft, batches, count, about, how)
        else:
            loss = replace(pair.hidden, soft=soft, weight=hidden_weight)
            recover.train(pair.student, loss, batches, steps=count, name="distillation", about=about, **how)
    return _back(student, pair.student)


def _one_of(task: str | Task, loss: OwnLoss | None, step: OwnStep | None) -> Loss:
    if loss is not None and step is not None:
        raise UsageError("loss= and step= are both given: give one, a step computes its loss itself")
    if step is not None:
        return recover.own_step(step)
    return recover.task_loss(task_of(task)) if loss is None else recover.own_loss(loss)


def steps_of(steps: int | None, epochs: int | None, batches: Iterable[Any]) -> int:
    if (steps is None) == (epochs is None):
        raise UsageError(f"steps={steps} and epochs={epochs}: give one of the two")
    if steps is not None:
        return steps
    if not isinstance(batches, Sized):
        raise UsageError(f"epochs={epochs}, but the batches ({type(batches).__name__}) have no length: give steps=")
    if epochs is None or epochs < 1:
        raise UsageError(f"epochs={epochs}: give at least 1")
    return max(1, epochs * len(batches))


def private(network: Pruned | nn.Module) -> nn.Module:
    """A copy to train, without gradients."""
    model: Any = network.model if isinstance(network, Pruned) else network
    if frameworks.is_keras(model):
        raise UsageError("a Keras model is trained in place with its own fit() and saved as it is")
    check_sound(model)
    try:
        module: nn.Module = duplicate(model)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise ModelError(f"{type(model).__name__} cannot be deep-copied, so no copy is trained: {error}") from error
    module.zero_grad(set_to_none=True)
    return module


def options_of(training: Training, lr: float) -> Training:
    return {**training, "optimizer": training.get("optimizer") or sgd(lr)}


def _trained(
    network: Given,
    loss: Loss,
    batches: Iterable[Any],
    steps: int,
    name: str,
    options: Training,
    zeros: str | MakeHook,
    about: Mapping[str, Any] | None = None,
) -> Given:
    module = private(network)
    with keeping(network, module, zeros, options) as how:
        recover.train(module, loss, batches, steps=steps, name=name, about=about, **how)
    return _back(network, module)


@contextmanager
def keeping(
    network: Pruned | nn.Module, module: nn.Module, zeros: str | MakeHook, options: Training
) -> Iterator[Training]:
    """The options with a hook for the zeros, which come after other hooks: nothing writes behind them."""
    hooks = zero_hooks(network, module, zeros)
    if hooks and zeros != "held" and options.get("patience") is not None:
        raise UsageError("patience= may give back the weights of a check with other zeros: leave it out")
    try:
        yield {**options, "hooks": (*options.get("hooks", ()), *hooks)} if hooks else options
    finally:
        for hook in hooks:
            hook.close()


def _back(network: Given, trained: nn.Module) -> Given:
    result: Any = with_values(network, tensors_of(trained)) if isinstance(network, Pruned) else trained
    return result  # type: ignore[no-any-return]
