"""Networks written here: images, sound, graphs."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from zoo.networks.entry import Built, Entry, image


def conv_block(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class HardCodedView(nn.Module):
    """The forward of a thousand tutorials: it says the number of its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 64, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(64 * 16 * 16, 48), nn.Linear(48, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        x = F.max_pool2d(F.relu(self.conv2(x)), 2)
        x = x.view(-1, 64 * 16 * 16)
        return self.fc2(F.relu(self.fc1(x)))


class UNet(nn.Module):
    """Ronneberger et al. 2015: skips by concatenation."""

    def __init__(self, width: int = 8):
        super().__init__()
        self.down1, self.down2 = conv_block(3, width), conv_block(width, 2 * width)
        self.bottom = conv_block(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.dec2 = conv_block(4 * width, 2 * width)
        self.up1 = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.dec1 = conv_block(3 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down1(x)
        b = self.down2(F.max_pool2d(a, 2))
        c = self.bottom(F.max_pool2d(b, 2))
        y = self.dec2(torch.cat([b, self.up2(c)], 1))
        return self.out(self.dec1(torch.cat([self.up1(y), a], 1)))


class VAE(nn.Module):
    """Kingma and Welling 2013, at its mean: evaluation draws nothing."""

    def __init__(self, latent: int = 12):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(3, 12, 4, 2, 1), nn.SiLU(), nn.Conv2d(12, 24, 4, 2, 1), nn.SiLU())
        self.mean, self.log_var = nn.Linear(24 * 64, latent), nn.Linear(24 * 64, latent)
        self.expand = nn.Linear(latent, 24 * 64)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(24, 12, 4, 2, 1), nn.SiLU(), nn.ConvTranspose2d(12, 3, 4, 2, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        hidden = self.encoder(x).flatten(1)
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        z = mean + torch.randn_like(mean) * torch.exp(0.5 * log_var) if self.training else mean
        return self.decoder(self.expand(z).unflatten(1, (24, 8, 8))), mean, log_var


def autoencoder() -> Built:
    widths = (48, 32, 12, 32)
    layers: list[nn.Module] = []
    for i, o in zip((64, *widths[:-1]), widths, strict=True):
        layers += [nn.Linear(i, o), nn.LayerNorm(o), nn.GELU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 64)), torch.randn(2, 64)


class Generator(nn.Module):
    """A DCGAN generator with a class embedding."""

    def __init__(self, noise: int = 16, width: int = 24):
        super().__init__()
        self.label = nn.Embedding(10, 8)
        self.start = nn.Linear(noise + 8, 2 * width * 4 * 4)
        self.width = width
        self.blocks = nn.Sequential(
            nn.BatchNorm2d(2 * width), nn.ReLU(),
            nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.ConvTranspose2d(width, 3, 4, 2, 1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z: Tensor, label: Tensor) -> Tensor:
        x = self.start(torch.cat([z, self.label(label)], 1))
        return self.blocks(x.view(-1, 2 * self.width, 4, 4))


class TemporalBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, dilation: int):
        super().__init__()
        self.pad = 2 * dilation
        self.conv1 = parametrizations.weight_norm(nn.Conv1d(inputs, outputs, 3, dilation=dilation, padding=self.pad))
        self.conv2 = parametrizations.weight_norm(nn.Conv1d(outputs, outputs, 3, dilation=dilation, padding=self.pad))
        self.skip = nn.Conv1d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.conv1(x)[..., : -self.pad])
        y = F.relu(self.conv2(y)[..., : -self.pad])
        return F.relu(y + self.skip(x))


def tcn() -> Built:
    """Bai et al. 2018: causal dilated convolutions with weight norm."""
    blocks = (TemporalBlock(6, 16, 1), TemporalBlock(16, 16, 2), TemporalBlock(16, 24, 4))
    return nn.Sequential(*blocks, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(24, 5)), torch.randn(2, 6, 24)


class GraphConvolution(nn.Module):
    """Kipf and Welling 2017 over a dense adjacency, normalised in the forward."""

    def __init__(self, inputs: int = 12, hidden: int = 24):
        super().__init__()
        self.weight1 = nn.Parameter(torch.randn(inputs, hidden) * 0.3)
        self.weight2 = nn.Parameter(torch.randn(hidden, hidden) * 0.3)
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.head = nn.Sequential(nn.Linear(hidden, 20), nn.ReLU(), nn.Linear(20, 4))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        adjacency = adjacency.abs() + torch.eye(adjacency.shape[-1], dtype=adjacency.dtype, device=adjacency.device)
        degree = adjacency.sum(-1).rsqrt()
        a = degree.unsqueeze(-1) * adjacency * degree.unsqueeze(-2)
        h = F.relu(a @ (x @ self.weight1) + self.bias)
        h = h + F.relu(torch.matmul(a, h @ self.weight2))
        return self.head(h)


class ShuffleBlock(nn.Module):
    """Zhang et al. 2018: grouped 1×1 convolutions with a channel shuffle between them."""

    def __init__(self, width: int, groups: int):
        super().__init__()
        self.groups = groups
        self.reduce = nn.Conv2d(width, width // 2, 1, groups=groups, bias=False)
        self.norm1 = nn.BatchNorm2d(width // 2)
        self.depth = nn.Conv2d(width // 2, width // 2, 3, padding=1, groups=width // 2, bias=False)
        self.expand = nn.Conv2d(width // 2, width, 1, groups=groups, bias=False)
        self.norm2 = nn.BatchNorm2d(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.reduce(x)))
        b, c, h, w = y.shape
        y = y.view(b, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(b, c, h, w)
        return F.relu(x + self.norm2(self.expand(self.depth(y))))


def channel_shuffle(width: int, groups: int) -> Built:
    blocks = (nn.Conv2d(3, width, 3, 2, 1), nn.ReLU(), ShuffleBlock(width, groups), nn.ChannelShuffle(groups))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 10))
    return nn.Sequential(*blocks, ShuffleBlock(width, groups), *head), image(16)


class SuperResolution(nn.Module):
    """Shi et al. 2016: pixel shuffle up, and a pixel unshuffle at the start."""

    def __init__(self, width: int = 16):
        super().__init__()
        self.unshuffle = nn.PixelUnshuffle(2)
        self.head = nn.Conv2d(12, width, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.PReLU(width))
        self.up = nn.Sequential(nn.Conv2d(width, width * 4, 3, padding=1), nn.PixelShuffle(2), nn.PReLU())
        self.tail = nn.Sequential(nn.Conv2d(width, 12, 3, padding=1), nn.PixelShuffle(2))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.unshuffle(x))
        y = y + self.body(y)
        return self.tail(self.up(y)) + F.interpolate(x, scale_factor=2, mode="nearest")


class SpectralDiscriminator(nn.Module):
    """Miyato et al. 2018: spectral norm, by the parametrization and by the older hook."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = parametrizations.spectral_norm(nn.Conv2d(3, 16, 4, 2, 1))
        self.conv2 = torch.nn.utils.spectral_norm(nn.Conv2d(16, 24, 4, 2, 1))
        self.head = parametrizations.spectral_norm(nn.Linear(24, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.conv2(F.leaky_relu(self.conv1(x), 0.2)), 0.2)
        return self.head(x.mean((2, 3)))


def weight_norm() -> Built:
    """The older, hook-based weight norm."""
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers = [torch.nn.utils.weight_norm(layer) for layer in (nn.Linear(12, 32), nn.Linear(32, 24))]
    return nn.Sequential(layers[0], nn.GELU(), layers[1], nn.ReLU(), nn.Linear(24, 4)), torch.randn(2, 12)


class OptionA(nn.Module):
    """The CIFAR ResNet's shortcut without parameters (He et al. 2016, option A): strided slices and zero padding."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.stride, self.grow = stride, outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.grow // 2, self.grow - self.grow // 2))
        return F.relu(x + y)


def cifar_resnet() -> Built:
    blocks = (OptionA(8, 8, 1), OptionA(8, 16, 2), OptionA(16, 32, 2))
    stem = (nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10)), image(32)


def generator() -> Built:
    return Generator(), (torch.randn(2, 16), torch.tensor([0, 9]))


TABLE: dict[str, Entry] = {
    "own/hard_coded_view": Entry(lambda: (HardCodedView(), image(32)), "own vision"),
    "own/cifar_resnet": Entry(cifar_resnet, "own vision"),
    "own/unet": Entry(lambda: (UNet(), image(32)), "own vision"),
    "own/vae": Entry(lambda: (VAE(), image(32)), "own vision"),
    "own/autoencoder": Entry(autoencoder, "own tables"),
    "own/gan_generator": Entry(generator, "own vision"),
    "own/tcn": Entry(tcn, "own sequence"),
    "own/graph_convolution": Entry(
        lambda: (GraphConvolution(), (torch.randn(2, 7, 12), torch.randn(2, 7, 7))), "own graph"
    ),
    "own/channel_shuffle": Entry(partial(channel_shuffle, 32, 2), "own vision"),
    "own/channel_shuffle_uneven": Entry(partial(channel_shuffle, 24, 3), "own vision"),
    "own/super_resolution": Entry(lambda: (SuperResolution(), image(16)), "own vision"),
    "own/spectral_norm": Entry(lambda: (SpectralDiscriminator(), image(32)), "own vision"),
    "own/weight_norm": Entry(weight_norm, "own tables"),
}
