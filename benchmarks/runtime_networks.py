"""Seven networks that runtimes are compared on. Weights are random unless a checkpoint is named: time does not ask."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from zoo.networks.entry import torchvision_operators

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True)
class Network:
    """`example`: two samples. `calibration`: batches of such inputs."""

    model: nn.Module
    example: Tensor

    @property
    def calibration(self) -> list[Tensor]:
        """Of its kind: noise where the input is numbers."""
        shape = self.example.shape[1:]
        if self.example.dtype == torch.int64:
            return [torch.randint(1, 30000, (8, *shape)) for _ in range(2)]
        if isinstance(self.model, Recommender):
            return [persons(32) for _ in range(4)]
        return [torch.randn(8, *shape) for _ in range(4)]


def vision(name: str) -> Network:
    torchvision_operators()
    import torchvision

    model = getattr(torchvision.models, name)(weights=None)
    return Network(_settled(model, torch.randn(4, 3, 224, 224)), torch.randn(2, 3, 224, 224))


def resnet56() -> Network:
    sys.path.insert(0, str(ROOT / "examples"))
    import cifar10
    from safetensors.torch import load_file

    model = cifar10.build(9)
    model.load_state_dict(load_file(cifar10.folder_of(None) / "cifar10jpeg_resnet56.safetensors"))
    return Network(model.eval(), torch.randn(2, 3, 32, 32))


class BertSmall(nn.Module):
    """Turc et al. 2019, "Well-read students learn better": 4 layers, 512 wide, 8 heads. Words in, logits out."""

    def __init__(self) -> None:
        super().__init__()
        torchvision_operators()
        from transformers import BertConfig, BertForSequenceClassification

        config = BertConfig(
            hidden_size=512, num_hidden_layers=4, num_attention_heads=8, intermediate_size=2048, num_labels=2
        )
        config._attn_implementation = "eager"
        self.bert = BertForSequenceClassification(config)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.bert(input_ids=words).logits
        return logits


class Speech(nn.Module):
    """Two LSTM layers over 100 frames of 40 bands, the mean over time, ten words."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, num_layers=2, batch_first=True)
        self.head = nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.lstm(x)[0].mean(1))
        return logits


class Recommender(nn.Module):
    """A deep interaction network: user and item embeddings beside 13 numbers, then 1024, 512 and 256 hidden units.

    The dense part has the sizes of DLRM's top network (Naumov et al. 2019).
    """

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(1000, 64), nn.Embedding(2000, 64)
        self.dense = nn.Sequential(nn.Linear(13, 512), nn.ReLU(), nn.Linear(512, 64), nn.ReLU())
        widths = (192, 1024, 1024, 512, 256)
        layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
        self.top = nn.Sequential(*layers, nn.Linear(256, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 15): a user's number, an item's number, 13 figures."""
        users, items = x[:, 0].long().clamp(0, 999), x[:, 1].long().clamp(0, 1999)
        parts = torch.cat([self.user(users), self.item(items), self.dense(x[:, 2:])], 1)
        score: Tensor = self.top(parts)
        return score


def persons(count: int) -> Tensor:
    return torch.cat([torch.randint(0, 1000, (count, 2)).float(), torch.randn(count, 13)], 1)


def recommender() -> Network:
    return Network(Recommender().eval(), persons(2))


def _settled(model: nn.Module, inputs: Tensor) -> nn.Module:
    """Batch norms with statistics of these inputs: signals of a random network neither die nor explode."""
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.momentum = None
            part.reset_running_stats()
    with torch.no_grad():
        model.train()(inputs)
    return model.eval()


NETWORKS: Mapping[str, Callable[[], Network]] = {
    "ResNet-18": lambda: vision("resnet18"),
    "ResNet-50": lambda: vision("resnet50"),
    "MobileNetV2": lambda: vision("mobilenet_v2"),
    "ResNet-56": resnet56,
    "BERT-small": lambda: Network(BertSmall().eval(), torch.randint(1, 30000, (2, 128))),
    "LSTM": lambda: Network(Speech().eval(), torch.randn(2, 100, 40)),
    "recommender": recommender,
}


def network(name: str) -> Network:
    torch.manual_seed(0)
    return NETWORKS[name]()
