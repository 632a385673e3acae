"""Networks that are trained here, since no checkpoint of them is at hand: an encoder like BERT and an LSTM.

    PARETOPRUNE_DATA=/path/to/data .venv/bin/python benchmarks/trained.py

Each is trained once with a fixed seed, last epoch, and kept in runs/trained; whoever asks for it later reads it there.
Training, validation and test sentences or recordings are disjoint, and validation is never trained on.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from zoo.networks.entry import torchvision_operators

FOLDER = Path(__file__).parent.parent / "runs" / "trained"
Batches = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Reader:
    """Batches of tensors that can be gone through again and again; with `shuffle`, each pass in its own order."""

    x: Tensor
    y: Tensor
    batch: int = 64
    shuffle: bool = False
    noise: Callable[[Tensor, torch.Generator], Tensor] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "passes", [0])

    def __len__(self) -> int:
        return -(-len(self.x) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        passes: list[int] = self.passes  # type: ignore[attr-defined]
        generator = torch.Generator().manual_seed(passes[0])
        passes[0] += 1
        order = torch.randperm(len(self.x), generator=generator) if self.shuffle else torch.arange(len(self.x))
        for index in order.split(self.batch):  # type: ignore[no-untyped-call]
            x = self.x[index]
            yield (x if self.noise is None else self.noise(x, generator)), self.y[index]


@dataclass(frozen=True)
class Trained:
    """A network in eval mode and its data. `train` draws anew in each pass; `known` are its examples as they are."""

    model: nn.Module
    train: Reader
    known: Batches
    validation: Batches
    test: Batches


class Encoder(nn.Module):
    """Hugging Face's BERT classifier of one tensor: word numbers (batch, words) in, 0 is no word; logits out."""

    def __init__(self, words: int) -> None:
        torchvision_operators()
        from transformers import BertConfig, BertForSequenceClassification

        super().__init__()
        config = BertConfig(
            vocab_size=words,
            hidden_size=128,
            num_hidden_layers=4,
            num_attention_heads=4,
            intermediate_size=512,
            max_position_embeddings=WORDS,
            hidden_dropout_prob=0.2,
            attention_probs_dropout_prob=0.1,
            num_labels=2,
        )
        self.bert = BertForSequenceClassification(config)

    def forward(self, words: Tensor) -> Tensor:
        logits: Tensor = self.bert(input_ids=words, attention_mask=(words != 0).long()).logits
        return logits


WORDS = 40
"""Words of a sentence that are read; two in a hundred sentences are longer."""
KNOWN_WORDS = 8000


def encoder() -> Trained:
    """SST-2, 5,920 sentences to train, the 1,000 after them and the 872 of the dev part to validate, 1,821 to test.

    Words by space, those that the training sentences have twice; the first position is a mark of its own, as in BERT.
    """
    data = pd.read_parquet(source("sst2.parquet"))
    part = {name: data[data.split == name] for name in ("train", "dev", "test")}
    train = part["train"].sample(frac=1, random_state=0)
    train, more = train[:5920], train[5920:]
    counts = Counter(w for text in train.text for w in text.split())
    common = [w for w, n in counts.most_common(KNOWN_WORDS) if n > 1]
    numbers = {w: i + 3 for i, w in enumerate(common)}  # 0 no word, 1 a word that is not known, 2 the mark

    def tensors(rows: pd.DataFrame) -> tuple[Tensor, Tensor]:
        x = torch.zeros(len(rows), WORDS, dtype=torch.long)
        for i, text in enumerate(rows.text):
            found = [2, *(numbers.get(w, 1) for w in text.split())][:WORDS]
            x[i, : len(found)] = torch.tensor(found)
        return x, torch.tensor(rows.label.to_numpy(), dtype=torch.long)

    def dropped(x: Tensor, generator: torch.Generator) -> Tensor:
        """A tenth of the words becomes unknown: without it so small a set is known by heart after three epochs."""
        gone = (torch.rand(x.shape, generator=generator) < 0.1) & (x > 2)
        return torch.where(gone, torch.ones_like(x), x)

    x, y = tensors(train)
    model = kept("encoder", lambda: Encoder(len(common) + 3), Reader(x, y, 64, True, dropped), epochs=8, lr=5e-4)
    return Trained(
        model,
        Reader(x, y, 64, True, dropped),
        list(Reader(x[:512], y[:512])),
        list(Reader(*tensors(pd.concat([more, part["dev"]])))),
        list(Reader(*tensors(part["test"]))),
    )


class Recurrent(nn.Module):
    """Two LSTMs over a spectrogram (batch, frames, bands); the mean over time is classified."""

    def __init__(self, bands: int = 32, units: int = 128, classes: int = 10) -> None:
        super().__init__()
        self.first = nn.LSTM(bands, units, batch_first=True)
        self.second = nn.LSTM(units, units, batch_first=True)
        self.head = nn.Linear(units, classes)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.first(x)
        x, _ = self.second(x)
        out: Tensor = self.head(x.mean(dim=1))
        return out


FRAMES, BANDS = 64, 32


def recurrent() -> Trained:
    """Spoken digits: of the 2,700 training recordings 1,700 to train and 1,000 to validate; the 300 of the test part.

    Log energies of 32 bands of equal width, windows of 32 ms every 10 ms, the first 64 windows.
    """
    data = np.load(source("fsdd.npz"))
    clips = np.split(data["audio"], np.cumsum(data["lengths"])[:-1])
    x = torch.stack([spectrogram(clip) for clip in clips])
    y = torch.from_numpy(data["labels"].astype(np.int64))
    test = torch.from_numpy(data["is_test"].astype(bool))
    order = torch.nonzero(~test).flatten()
    order = order[torch.randperm(len(order), generator=torch.Generator().manual_seed(0))]
    train, held = order[:1700], order[1700:]
    mean, std = x[train].mean(), x[train].std()
    x = (x - mean) / std

    def moved(x: Tensor, generator: torch.Generator) -> Tensor:
        return x + 0.3 * torch.randn(x.shape, generator=generator)

    reader = Reader(x[train], y[train], 64, True, moved)
    model = kept("recurrent", Recurrent, reader, epochs=12, lr=3e-3)
    return Trained(
        model,
        Reader(x[train], y[train], 64, True, moved),
        list(Reader(x[train[:512]], y[train[:512]])),
        list(Reader(x[held], y[held])),
        list(Reader(x[test], y[test])),
    )


def spectrogram(clip: np.ndarray) -> Tensor:
    """(frames, bands) of 16-bit samples at 8 kHz."""
    wave = torch.from_numpy(clip.astype(np.float32)) / 32768
    wave = F.pad(wave, (0, max(0, 80 * FRAMES + 256 - len(wave))))
    energy = torch.stft(wave, 256, 80, window=torch.hann_window(256), center=False, return_complex=True).abs().square()
    bands = energy[:128, :FRAMES].reshape(BANDS, 4, FRAMES).mean(dim=1)
    return (bands + 1e-6).log().T.contiguous()


NETWORKS: Mapping[str, Callable[[], Trained]] = {"encoder": encoder, "recurrent": recurrent}


def source(name: str) -> Path:
    return Path(os.environ["PARETOPRUNE_DATA"]) / name


def kept(name: str, build: Callable[[], nn.Module], batches: Reader, epochs: int, lr: float) -> nn.Module:
    """The trained network, read from its file where there is one."""
    torch.manual_seed(0)
    model, path = build(), FOLDER / f"{name}.safetensors"
    if path.exists():
        model.load_state_dict(load_file(path))
        return model.eval()
    fitted(model, batches, epochs, lr)
    FOLDER.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in model.state_dict().items()}, path)
    return model.eval()


def fitted(model: nn.Module, batches: Reader, epochs: int, lr: float) -> None:
    """AdamW, one cycle; the weights of the last step."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0.01)
    steps = epochs * len(batches)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for x, y in batches:
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()


def accuracy(model: nn.Module, batches: Batches) -> float:
    """Correct answers over answers."""
    with torch.inference_mode():
        hits = sum(int((model(x).argmax(1) == y).sum()) for x, y in batches)
    return hits / sum(len(y) for _, y in batches)


if __name__ == "__main__":
    for name, network in NETWORKS.items():
        found = network()
        print(f"{name}: validation {100 * accuracy(found.model, found.validation):.1f} % ({FOLDER / name}.safetensors)")
