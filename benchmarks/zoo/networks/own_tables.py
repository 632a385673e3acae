"""Networks written here: recommendation and tables."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.entry import Built, Entry


def mlp(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for i, o in pairwise(widths):
        layers += [nn.Linear(i, o), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class DLRM(nn.Module):
    """Naumov et al. 2019: bags of categories, pairwise dot products, two towers of layers."""

    def __init__(self, rows: tuple[int, ...] = (20, 30, 40), width: int = 12):
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(n, width, mode="sum") for n in rows)
        self.bottom = mlp(5, 24, width)
        pairs = torch.triu_indices(len(rows) + 1, len(rows) + 1, offset=1)
        self.register_buffer("left", pairs[0])
        self.register_buffer("right", pairs[1])
        self.top = mlp(width + pairs.shape[1], 24, 16, 1)

    def forward(self, dense: Tensor, categories: Tensor) -> Tensor:
        x = self.bottom(dense)
        vectors = [x, *(bag(categories[:, i]) for i, bag in enumerate(self.bags))]
        stacked = torch.stack(vectors, 1)
        products = torch.bmm(stacked, stacked.transpose(1, 2))[:, self.left, self.right]
        return torch.sigmoid(self.top(torch.cat([x, products], 1)))


class DeepFM(nn.Module):
    """Guo et al. 2017: a factorisation machine and a deep part over one embedding table."""

    def __init__(self, fields: int = 4, rows: int = 60, width: int = 8):
        super().__init__()
        self.linear, self.embed = nn.Embedding(rows, 1), nn.Embedding(rows, width)
        self.register_buffer("offsets", torch.arange(fields) * (rows // fields))
        self.deep = nn.Sequential(
            nn.Linear(fields * width, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(0.1), nn.Linear(32, 24), nn.ReLU(),
            nn.Linear(24, 1),
        )  # fmt: skip
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, categories: Tensor) -> Tensor:
        ids = categories + self.offsets
        vectors = self.embed(ids)
        pairs = vectors.sum(1).square() - vectors.square().sum(1)
        first = self.linear(ids).sum(1) + self.bias
        return torch.sigmoid(first.squeeze(1) + 0.5 * pairs.sum(1) + self.deep(vectors.flatten(1)).squeeze(1))


class TwoTower(nn.Module):
    """A user tower and an item tower; cosine of their ends."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.user, self.item = nn.Embedding(40, width), nn.Embedding(50, width)
        self.user_tower, self.item_tower = mlp(width + 3, 32, 12), mlp(width, 24, 12)
        self.temperature = nn.Parameter(torch.tensor(0.5))

    def forward(self, user: Tensor, context: Tensor, item: Tensor) -> Tensor:
        a = self.user_tower(torch.cat([self.user(user), context], 1))
        b = self.item_tower(self.item(item))
        return (F.normalize(a, dim=1) * F.normalize(b, dim=1)).sum(1) / self.temperature.abs()


class Experts(nn.Module):
    """A dense mixture of stacked expert weights (Jacobs et al. 1991) with a softmax gate, in einsum."""

    def __init__(self, experts: int = 4, width: int = 12, hidden: int = 20):
        super().__init__()
        self.gate = nn.Linear(width, experts)
        self.up = nn.Parameter(torch.randn(experts, width, hidden) * width**-0.5)
        self.down = nn.Parameter(torch.randn(experts, hidden, width) * hidden**-0.5)
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(-1)
        hidden = F.gelu(torch.einsum("bw,ewh->beh", x, self.up))
        return self.head(x + torch.einsum("be,beh,ehw->bw", weights, hidden, self.down))


def dlrm() -> Built:
    return DLRM(), (torch.randn(2, 5), torch.randint(0, 20, (2, 3, 2)))


def two_tower() -> Built:
    return TwoTower(), (torch.tensor([0, 39]), torch.randn(2, 3), torch.tensor([49, 0]))


TABLE: dict[str, Entry] = {
    "own/dlrm": Entry(dlrm, "own recommendation"),
    "own/deepfm": Entry(lambda: (DeepFM(), torch.randint(0, 15, (2, 4))), "own recommendation"),
    "own/two_tower": Entry(two_tower, "own recommendation"),
    "own/mixture_of_experts": Entry(lambda: (Experts(), torch.randn(2, 12)), "own tables"),
}
