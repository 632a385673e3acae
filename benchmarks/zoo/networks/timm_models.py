"""timm: real classes through `create_model`, with small depths and widths where their arguments allow it."""

from __future__ import annotations

from functools import partial
from typing import Any

from zoo.networks.entry import Built, Entry, image, torchvision_operators


def create(name: str, side: int = 64, **kwargs: Any) -> Built:
    torchvision_operators()
    import timm

    return timm.create_model(name, pretrained=False, num_classes=10, **kwargs), image(side)


def tokens_of(name: str, **kwargs: Any) -> Built:
    """A transformer over patches: two blocks of four heads on 32 px."""
    given = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
    return create(name, 32, **(given | kwargs))


def levit() -> Built:
    torchvision_operators()
    from timm.models.levit import LevitDistilled

    sizes = {"embed_dim": (32, 48), "key_dim": 8, "depth": (1, 1), "num_heads": (2, 3), "down_op": "subsample"}
    return LevitDistilled(img_size=64, num_classes=10, **sizes), image(64)


def mixer(block: str, norm: str = "LayerNorm", mlp: str = "Mlp", **kwargs: Any) -> Built:
    torchvision_operators()
    from timm.layers import GatedMlp, Mlp
    from timm.models import mlp_mixer
    from torch.nn import LayerNorm

    names = {"LayerNorm": LayerNorm, "Affine": mlp_mixer.Affine, "Mlp": Mlp, "GatedMlp": GatedMlp}
    parts = {"block_layer": getattr(mlp_mixer, block), "norm_layer": names[norm], "mlp_layer": names[mlp]}
    model = mlp_mixer.MlpMixer(10, img_size=32, patch_size=8, num_blocks=2, embed_dim=32, **parts, **kwargs)
    return model, image(32)


def poolformer() -> Built:
    torchvision_operators()
    from timm.layers import GroupNorm1
    from timm.models.metaformer import MetaFormer
    from torch.nn import GELU

    parts = {"downsample_norm": None, "mlp_act": GELU, "mlp_bias": True, "norm_layers": GroupNorm1}
    scales = {"layer_scale_init_values": 1e-5, "res_scale_init_values": None, "use_mlp_head": False}
    return MetaFormer(num_classes=10, depths=[1, 1, 1, 1], dims=[8, 16, 24, 32], **parts, **scales), image(64)


def caformer() -> Built:
    torchvision_operators()
    from timm.models import metaformer

    mixers = [metaformer.SepConv, metaformer.SepConv, metaformer.Attention, metaformer.Attention]
    norms = [metaformer.LayerNorm2dNoBias] * 2 + [metaformer.LayerNormNoBias] * 2
    sizes = {"depths": [1, 1, 1, 1], "dims": [8, 16, 32, 64]}
    return metaformer.MetaFormer(num_classes=10, token_mixers=mixers, norm_layers=norms, **sizes), image(64)


def resnetv2() -> Built:
    """Weight standardisation and group norm, as in BiT."""
    torchvision_operators()
    from functools import partial as fix

    from timm.models.resnetv2 import GroupNormAct, ResNetV2, StdConv2d

    parts = {"conv_layer": fix(StdConv2d, eps=1e-8), "norm_layer": fix(GroupNormAct, num_groups=8)}
    sizes = {"layers": [1, 1, 1, 1], "channels": (32, 64, 96, 128), "stem_chs": 16}
    return ResNetV2(num_classes=10, stem_type="fixed", **sizes, **parts), image(64)


_STAGES = {"depths": (1, 1, 1, 1), "embed_dims": (8, 16, 24, 32)}

Image = partial(Entry, needs="timm")

TABLE: dict[str, Entry] = {
    "timm/vit": Image(partial(tokens_of, "vit_tiny_patch16_224"), "timm transformer"),
    "timm/vit_qk_norm": Image(partial(tokens_of, "test_vit", qk_norm=True, init_values=0.1), "timm transformer"),
    "timm/vit_relpos": Image(partial(tokens_of, "vit_relpos_small_patch16_224"), "timm transformer"),
    "timm/deit": Image(partial(tokens_of, "deit_tiny_patch16_224"), "timm transformer"),
    "timm/deit_distilled": Image(partial(tokens_of, "deit_tiny_distilled_patch16_224"), "timm transformer"),
    "timm/beit": Image(partial(tokens_of, "beit_base_patch16_224"), "timm transformer"),
    "timm/eva02": Image(partial(tokens_of, "eva02_tiny_patch14_224"), "timm transformer"),
    "timm/swin": Image(
        partial(
            create,
            "swin_tiny_patch4_window7_224",
            32,
            img_size=32,
            window_size=4,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        "timm transformer",
    ),
    "timm/swin_v2": Image(
        partial(
            create,
            "swinv2_tiny_window8_256",
            32,
            img_size=32,
            window_size=4,
            embed_dim=16,
            depths=(2, 2),
            num_heads=(2, 4),
        ),
        "timm transformer",
    ),
    "timm/maxvit": Image(partial(create, "test_maxvit", 64, img_size=64), "timm transformer"),
    "timm/coatnet": Image(partial(create, "test_coatnet", 64, img_size=64), "timm transformer"),
    "timm/convnext": Image(
        partial(create, "convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), "timm convolution"
    ),
    "timm/convnextv2": Image(
        partial(create, "convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32)), "timm convolution"
    ),
    "timm/nfnet": Image(partial(create, "test_nfnet"), "timm convolution"),
    "timm/nf_resnet": Image(partial(create, "nf_resnet26"), "timm convolution"),
    "timm/resnetv2": Image(resnetv2, "timm convolution"),
    "timm/res2net": Image(partial(create, "res2net50_14w_8s", layers=(1, 1, 1, 1)), "timm convolution"),
    "timm/res2next": Image(partial(create, "res2next50", layers=(1, 1, 1, 1)), "timm convolution"),
    "timm/cspresnet": Image(partial(create, "cspresnet50"), "timm convolution"),
    "timm/cspdarknet": Image(partial(create, "cspdarknet53"), "timm convolution"),
    "timm/hrnet": Image(partial(create, "hrnet_w18_small"), "timm convolution"),
    "timm/ghostnet": Image(partial(create, "ghostnet_050"), "timm convolution"),
    "timm/ghostnet_v2": Image(partial(create, "ghostnetv2_100"), "timm convolution"),
    "timm/mixer": Image(partial(mixer, "MixerBlock"), "timm mixer"),
    "timm/resmlp": Image(partial(mixer, "ResBlock", "Affine", mlp_ratio=4), "timm mixer"),
    "timm/gmlp": Image(partial(mixer, "SpatialGatingBlock", mlp="GatedMlp", mlp_ratio=4), "timm mixer"),
    "timm/poolformer": Image(poolformer, "timm mixer"),
    "timm/caformer": Image(caformer, "timm mixer"),
    "timm/levit": Image(levit, "timm transformer"),
    "timm/efficientformer": Image(partial(create, "efficientformer_l1", 224, num_vit=1, **_STAGES), "timm transformer"),
    "timm/efficientformer_v2": Image(partial(create, "efficientformerv2_s0", 64, img_size=64), "timm transformer"),
    "timm/tresnet": Image(partial(create, "tresnet_m", layers=[1, 1, 1, 1], width_factor=0.5), "timm convolution"),
    "timm/repvgg": Image(partial(create, "repvgg_a0"), "timm convolution"),
    "timm/mobileone": Image(partial(create, "mobileone_s0"), "timm convolution"),
    "timm/fastvit": Image(
        partial(create, "fastvit_t8", layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64)), "timm transformer"
    ),
    "timm/fastvit_attention": Image(
        partial(create, "fastvit_sa12", layers=(1, 1, 1, 1), embed_dims=(8, 16, 32, 64)), "timm transformer"
    ),
    "timm/davit": Image(
        partial(create, "davit_tiny", depths=(1, 1, 1), embed_dims=(16, 24, 32), num_heads=(2, 3, 4), window_size=4),
        "timm transformer",
    ),
    "timm/xcit": Image(partial(tokens_of, "xcit_nano_12_p8_224", cls_attn_layers=1), "timm transformer"),
    "timm/coat": Image(
        partial(
            create,
            "coat_tiny",
            64,
            img_size=64,
            embed_dims=[16, 32, 32, 32],
            serial_depths=[1, 1, 1, 1],
            parallel_depth=1,
        ),
        "timm transformer",
    ),
    "timm/coat_lite": Image(
        partial(create, "coat_lite_tiny", 64, img_size=64, embed_dims=[16, 24, 32, 40], serial_depths=[1, 1, 1, 1]),
        "timm transformer",
    ),
}
