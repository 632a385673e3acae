"""torchvision: classification, segmentation, video. Real classes, small where their arguments allow it."""

from __future__ import annotations

from functools import partial
from typing import Any

from torch import nn

from zoo.networks.entry import Built, Entry, clip, image, torchvision_operators


def models() -> Any:
    torchvision_operators()
    from torchvision import models

    return models


def plain(name: str, side: int = 64, **kwargs: Any) -> Built:
    return getattr(models(), name)(weights=None, num_classes=10, **kwargs), image(side)


def alexnet() -> Built:
    """Its own feature layers; the classifier's 4,096 units are 64, which are seconds instead of minutes."""
    model = models().AlexNet(num_classes=10)
    parts = (nn.Dropout(), nn.Linear(256 * 36, 64), nn.ReLU(inplace=True), nn.Linear(64, 10))
    model.classifier = nn.Sequential(*parts)
    return model, image(64)


def vgg(name: str) -> Built:
    model, example = plain(name, 32)
    model.classifier = nn.Sequential(nn.Linear(512 * 49, 64), nn.ReLU(True), nn.Dropout(), nn.Linear(64, 10))
    return model, example


def resnext() -> Built:
    from_ = models().resnet
    return from_.ResNet(from_.Bottleneck, [1, 1, 1, 1], 10, groups=8, width_per_group=4), image(64)


def wide_resnet() -> Built:
    from_ = models().resnet
    return from_.ResNet(from_.Bottleneck, [1, 1, 1, 1], 10, width_per_group=128), image(64)


def densenet() -> Built:
    return models().DenseNet(8, (2, 3, 2, 2), 16, num_classes=10), image(64)


def inception() -> Built:
    return models().inception_v3(weights=None, num_classes=10, aux_logits=False, init_weights=False), image(96)


def googlenet() -> Built:
    return models().googlenet(weights=None, num_classes=10, aux_logits=False, init_weights=False), image(64)


def efficientnet_v2() -> Built:
    from_ = models().efficientnet
    blocks = [
        from_.FusedMBConvConfig(1, 3, 1, 8, 8, 1),
        from_.FusedMBConvConfig(4, 3, 2, 8, 16, 2),
        from_.MBConvConfig(4, 3, 2, 16, 24, 2),
        from_.MBConvConfig(6, 3, 1, 24, 32, 2),
    ]
    return from_.EfficientNet(blocks, dropout=0.1, num_classes=10, last_channel=64), image(64)


def regnet(**kwargs: Any) -> Built:
    from_ = models().regnet
    blocks = from_.BlockParams.from_init_params(depth=6, w_0=16, w_a=8.0, w_m=2.0, group_width=8, **kwargs)
    return from_.RegNet(blocks, num_classes=10), image(64)


def convnext() -> Built:
    from_ = models().convnext
    blocks = [from_.CNBlockConfig(16, 32, 2), from_.CNBlockConfig(32, 48, 2), from_.CNBlockConfig(48, None, 1)]
    return from_.ConvNeXt(blocks, stochastic_depth_prob=0.1, num_classes=10), image(64)


def vit() -> Built:
    return models().VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10), image(32)


def swin(version: int) -> Built:
    from_ = models().swin_transformer
    parts = {"block": from_.SwinTransformerBlockV2, "downsample_layer": from_.PatchMergingV2} if version == 2 else {}
    return from_.SwinTransformer([4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=10, **parts), image(64)


def maxvit() -> Built:
    return models().MaxVit((64, 64), 16, 4, [16, 32], [1, 1], 8, 0.1, num_classes=10), image(64)


def segmentation(name: str, **kwargs: Any) -> Built:
    return getattr(models().segmentation, name)(weights=None, weights_backbone=None, num_classes=5, **kwargs), image(64)


def video_resnet(conv: str, stem: str = "BasicStem") -> Built:
    from_ = models().video.resnet
    makers = [from_.Conv3DSimple, *[getattr(from_, conv)] * 3]
    if conv == "Conv2Plus1D":
        makers[0] = from_.Conv2Plus1D
    return from_.VideoResNet(from_.BasicBlock, makers, [1, 1, 1, 1], getattr(from_, stem), 10), clip(4, 32)


def s3d() -> Built:
    model = models().video.s3d(weights=None, num_classes=10)
    model.avgpool = nn.AvgPool3d((2, 2, 2), stride=1)  # it expects 224 px
    return model, clip(16, 64)


def mvit(version: int) -> Built:
    from_ = models().video.mvit
    config = from_.MSBlockConfig
    blocks = [
        config(1, 16, 32, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        config(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
    ]
    if version == 1:
        blocks = [
            config(1, 16, 32, [], [3, 3, 3], [], [1, 2, 2]),
            config(2, 32, 32, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 1, 1]),
        ]
    second = version == 2
    model = from_.MViT(
        spatial_size=(32, 32),
        temporal_size=4,
        block_setting=blocks,
        residual_pool=second,
        residual_with_cls_embed=False,
        rel_pos_embed=second,
        proj_after_attn=second,
        num_classes=10,
    )
    return model, clip(4, 32)


def swin3d() -> Built:
    from_ = models().video.swin_transformer
    return from_.SwinTransformer3d([2, 4, 4], 16, [2, 2], [2, 4], [2, 4, 4], num_classes=10), clip(8, 32)


Vision = partial(Entry, needs="torchvision")
CLASSIFIER, SEGMENTER, VIDEO = "torchvision classification", "torchvision segmentation", "torchvision video"

TABLE: dict[str, Entry] = {
    "torchvision/alexnet": Vision(alexnet, CLASSIFIER),
    "torchvision/vgg11": Vision(partial(vgg, "vgg11"), CLASSIFIER),
    "torchvision/vgg11_bn": Vision(partial(vgg, "vgg11_bn"), CLASSIFIER),
    "torchvision/resnet18": Vision(partial(plain, "resnet18"), CLASSIFIER),
    "torchvision/resnet50": Vision(partial(plain, "resnet50"), CLASSIFIER),
    "torchvision/resnext": Vision(resnext, CLASSIFIER),
    "torchvision/wide_resnet": Vision(wide_resnet, CLASSIFIER),
    "torchvision/densenet": Vision(densenet, CLASSIFIER),
    "torchvision/googlenet": Vision(googlenet, CLASSIFIER),
    "torchvision/inception_v3": Vision(inception, CLASSIFIER),
    "torchvision/squeezenet1_1": Vision(partial(plain, "squeezenet1_1"), CLASSIFIER),
    "torchvision/mobilenet_v2": Vision(partial(plain, "mobilenet_v2"), CLASSIFIER),
    "torchvision/mobilenet_v3_small": Vision(partial(plain, "mobilenet_v3_small"), CLASSIFIER),
    "torchvision/mobilenet_v3_large": Vision(partial(plain, "mobilenet_v3_large"), CLASSIFIER),
    "torchvision/shufflenet_v2": Vision(partial(plain, "shufflenet_v2_x0_5"), CLASSIFIER),
    "torchvision/mnasnet": Vision(partial(plain, "mnasnet0_5"), CLASSIFIER),
    "torchvision/efficientnet_b0": Vision(partial(plain, "efficientnet_b0"), CLASSIFIER),
    "torchvision/efficientnet_v2": Vision(efficientnet_v2, CLASSIFIER),
    "torchvision/regnet_x": Vision(regnet, CLASSIFIER),
    "torchvision/regnet_y": Vision(partial(regnet, se_ratio=0.25), CLASSIFIER),
    "torchvision/convnext": Vision(convnext, CLASSIFIER),
    "torchvision/vit": Vision(vit, CLASSIFIER),
    "torchvision/swin_v1": Vision(partial(swin, 1), CLASSIFIER),
    "torchvision/swin_v2": Vision(partial(swin, 2), CLASSIFIER),
    "torchvision/maxvit": Vision(maxvit, CLASSIFIER),
    "torchvision/fcn": Vision(partial(segmentation, "fcn_resnet50", aux_loss=True), SEGMENTER),
    "torchvision/deeplabv3": Vision(partial(segmentation, "deeplabv3_mobilenet_v3_large"), SEGMENTER),
    "torchvision/lraspp": Vision(partial(segmentation, "lraspp_mobilenet_v3_large"), SEGMENTER),
    "torchvision/r3d": Vision(partial(video_resnet, "Conv3DSimple"), VIDEO),
    "torchvision/mc3": Vision(partial(video_resnet, "Conv3DNoTemporal"), VIDEO),
    "torchvision/r2plus1d": Vision(partial(video_resnet, "Conv2Plus1D", "R2Plus1dStem"), VIDEO),
    "torchvision/s3d": Vision(s3d, VIDEO),
    "torchvision/mvit_v1": Vision(partial(mvit, 1), VIDEO),
    "torchvision/mvit_v2": Vision(partial(mvit, 2), VIDEO),
    "torchvision/swin3d": Vision(swin3d, VIDEO),
}
