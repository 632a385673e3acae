"""The table from operator (by overload) to rule. A new operator is one line here and, at most, one function."""

from __future__ import annotations

from paretoprune.graph.op import Rule, unknown_dead
from paretoprune.graph.rules import contraction, create, normalise, pieces, pointwise, pool, reduce, shape

_CONVOLUTION = Rule(
    contraction.convolution,
    dead=contraction.weighted_dead,
    resize=contraction.convolution_resize,
    macs=contraction.convolution_macs,
    layer=contraction.convolution_layer,
    rows=contraction.convolution_rows,
)
_TRANSPOSED = Rule(
    contraction.convolution,
    dead=contraction.weighted_dead,
    resize=contraction.convolution_resize,
    macs=contraction.convolution_macs,
    layer=contraction.convolution_layer,
)
_MATRIX = Rule(contraction.matrix_product, dead=contraction.matrix_product_dead, macs=contraction.matrix_product_macs)
_COPY = Rule(shape.same)
_ZERO_STAYS = Rule(pointwise.pointwise, dead=pointwise.zero_stays)
_ANY_VALUE = Rule(pointwise.pointwise, dead=unknown_dead)
_CLAMP = Rule(pointwise.pointwise, dead=pointwise.clamp_dead)
_SUM = Rule(pointwise.pointwise, dead=pointwise.sum_dead)
_TIMES = Rule(pointwise.pointwise, dead=pointwise.product_dead)
_QUOTIENT = Rule(pointwise.pointwise, dead=pointwise.quotient_dead)
_POWER = Rule(pointwise.pointwise, dead=pointwise.power_dead)
_REGROUP = Rule(shape.regroup, resize=shape.regroup_resize)
_FLATTEN = Rule(shape.regroup)
_PERMUTE = Rule(shape.permute)
_TRANSPOSE = Rule(shape.transpose)
_MOVE = Rule(shape.movedim)
_SQUEEZE = Rule(shape.squeeze, resize=shape.squeeze_resize)
_SPLIT = Rule(pieces.split, resize=pieces.split_resize)
_PAD = Rule(pieces.pad, dead=pieces.pad_dead, resize=pieces.pad_resize)
_POOL = Rule(pool.pool, dead=pool.pool_dead)
_SUM_OVER = Rule(reduce.reduce, dead=reduce.sum_dead)
_MEAN_OVER = Rule(reduce.reduce, dead=reduce.sum_dead, resize=reduce.mean_resize)
_MAXIMUM = Rule(reduce.reduce, dead=reduce.maximum_dead)
_SPREAD = Rule(reduce.freezing_reduce, dead=unknown_dead)
_SOFTMAX = Rule(reduce.softmax, dead=unknown_dead)
_ZEROS = Rule(create.fill, dead=create.zero_dead, resize=create.fill_resize)
_ZEROS_LIKE = Rule(create.fill_like, dead=create.zero_dead)
_FILL = Rule(create.fill, dead=unknown_dead, resize=create.fill_resize)
_FILL_LIKE = Rule(create.fill_like, dead=unknown_dead)

RULES: dict[str, Rule] = {
    # contractions
    "aten.conv1d.default": _CONVOLUTION,
    "aten.conv2d.default": _CONVOLUTION,
    "aten.conv3d.default": _CONVOLUTION,
    "aten.conv1d.padding": _CONVOLUTION,
    "aten.conv2d.padding": _CONVOLUTION,
    "aten.conv3d.padding": _CONVOLUTION,
    "aten.conv_transpose1d.default": _TRANSPOSED,
    "aten.conv_transpose2d.input": _TRANSPOSED,
    "aten.conv_transpose3d.input": _TRANSPOSED,
    "aten.linear.default": Rule(
        contraction.linear,
        dead=contraction.linear_dead,
        macs=contraction.linear_macs,
        layer=contraction.linear_layer,
        rows=contraction.linear_rows,
    ),
    "aten.matmul.default": _MATRIX,
    "aten.mm.default": _MATRIX,
    "aten.bmm.default": _MATRIX,
    "aten.addmm.default": Rule(contraction.addmm, dead=contraction.addmm_dead, macs=contraction.addmm_macs),
    # normalisation
    "aten.batch_norm.default": Rule(normalise.batch_norm, dead=normalise.channel_norm_dead, mode=5),
    "aten.instance_norm.default": Rule(normalise.instance_norm, dead=normalise.channel_norm_dead, mode=5),
    "aten.layer_norm.default": Rule(
        normalise.layer_norm,
        dead=normalise.channel_norm_dead,
        resize=normalise.layer_norm_resize,
        masked=normalise.layer_norm_masked,
    ),
    "aten.rms_norm.default": Rule(
        normalise.layer_norm,
        dead=normalise.rms_norm_dead,
        resize=normalise.layer_norm_resize,
        masked=normalise.rms_norm_masked,
    ),
    "aten.group_norm.default": Rule(
        normalise.group_norm,
        dead=normalise.channel_norm_dead,
        resize=normalise.group_norm_resize,
        masked=normalise.group_norm_masked,
    ),
    # pointwise
    **dict.fromkeys(
        (
            "aten.relu.default",
            "aten.relu6.default",
            "aten.abs.default",
            "aten.square.default",
            "aten.sqrt.default",
            "aten.tanh.default",
            "aten.gelu.default",
            "aten.silu.default",
            "aten.elu.default",
            "aten.selu.default",
            "aten.celu.default",
            "aten.mish.default",
            "aten.leaky_relu.default",
            "aten.hardswish.default",
            "aten.softsign.default",
            "aten.tanhshrink.default",
            "aten.hardshrink.default",
            "aten.softshrink.default",
            "aten.neg.default",
            "aten.sin.default",
            "aten.atan.default",
            "aten.erf.default",
            "aten.sign.default",
            "aten.round.default",
            "aten.floor.default",
            "aten.expm1.default",
        ),
        _ZERO_STAYS,
    ),
    **dict.fromkeys(
        (
            "aten.sigmoid.default",
            "aten.hardsigmoid.default",
            "aten.exp.default",
            "aten.softplus.default",
            "aten.cos.default",
            "aten.log.default",
            "aten.log1p.default",
            "aten.rsqrt.default",
            "aten.reciprocal.default",
            "aten.log_sigmoid.default",
            "aten.maximum.default",
            "aten.minimum.default",
            "aten.where.self",
            "aten.where.ScalarOther",
            "aten.eq.Scalar",
            "aten.ne.Scalar",
            "aten.gt.Scalar",
            "aten.ge.Scalar",
            "aten.lt.Scalar",
            "aten.le.Scalar",
            "aten.eq.Tensor",
            "aten.gt.Tensor",
            "aten.lt.Tensor",
            "aten.pow.Scalar",
            "aten.rsub.Scalar",
            "aten.lerp.Scalar",
        ),
        _ANY_VALUE,
    ),
    "aten.clamp.default": _CLAMP,
    "aten.hardtanh.default": _CLAMP,
    "aten.clamp_min.default": _CLAMP,
    "aten.clamp_max.default": _CLAMP,
    "aten.prelu.default": Rule(pointwise.prelu, dead=pointwise.prelu_dead),
    "aten.add.Tensor": _SUM,
    "aten.add.Scalar": _SUM,
    "aten.sub.Tensor": _SUM,
    "aten.sub.Scalar": _SUM,
    "aten.mul.Tensor": _TIMES,
    "aten.mul.Scalar": _TIMES,
    "aten.div.Tensor": _QUOTIENT,
    "aten.div.Scalar": _QUOTIENT,
    "aten.pow.Tensor_Scalar": _POWER,
    # copies
    **dict.fromkeys(
        (
            "aten.dropout.default",
            "aten.feature_dropout.default",
            "aten.alpha_dropout.default",
            "aten.feature_alpha_dropout.default",
        ),
        Rule(shape.same, mode=2),
    ),
    **dict.fromkeys(
        (
            "aten.contiguous.default",
            "aten.clone.default",
            "aten.alias.default",
            "aten.detach.default",
            "aten.detach_.default",
            "aten.to.dtype",
            "aten.to.dtype_layout",
            "aten.to.device",
            "aten.to.other",
            "aten._to_copy.default",
            "aten.lift_fresh_copy.default",
            "aten.type_as.default",
            "aten.positive.default",
        ),
        _COPY,
    ),
    # layout
    "aten.view.default": _REGROUP,
    "aten.reshape.default": _REGROUP,
    "aten._unsafe_view.default": _REGROUP,
    "aten.unflatten.int": _REGROUP,
    "aten.flatten.using_ints": _FLATTEN,
    "aten.view_as.default": Rule(shape.view_as, dead=shape.view_as_dead),
    "aten.reshape_as.default": Rule(shape.view_as, dead=shape.view_as_dead),
    "aten.permute.default": _PERMUTE,
    "aten.transpose.int": _TRANSPOSE,
    "aten.swapaxes.default": _TRANSPOSE,
    "aten.swapdims.default": _TRANSPOSE,
    "aten.mT.default": _TRANSPOSE,
    "aten.t.default": _TRANSPOSE,
    "aten.numpy_T.default": Rule(shape.reverse),
    "aten.movedim.int": _MOVE,
    "aten.movedim.intlist": _MOVE,
    "aten.moveaxis.int": _MOVE,
    "aten.moveaxis.intlist": _MOVE,
    "aten.unsqueeze.default": Rule(shape.unsqueeze),
    "aten.squeeze.default": _SQUEEZE,
    "aten.squeeze.dim": _SQUEEZE,
    "aten.squeeze.dims": _SQUEEZE,
    "aten.expand.default": Rule(shape.expand, dead=shape.expand_dead, resize=shape.expand_resize),
    "aten.expand_as.default": Rule(shape.expand_as, dead=shape.expand_dead),
    "aten.repeat.default": Rule(shape.repeat),
    # pieces
    "aten.cat.default": Rule(pieces.cat),
    "aten.concat.default": Rule(pieces.cat),
    "aten.stack.default": Rule(pieces.stack),
    "aten.split.Tensor": _SPLIT,
    "aten.split.sizes": _SPLIT,
    "aten.split_with_sizes.default": _SPLIT,
    "aten.chunk.default": _SPLIT,
    "aten.slice.Tensor": Rule(pieces.slice_, resize=pieces.slice_resize),
    "aten.select.int": Rule(pieces.select),
    "aten.unbind.int": Rule(pieces.unbind),
    "aten.pad.default": _PAD,
    "aten.constant_pad_nd.default": _PAD,
    "getitem": Rule(pieces.take_output),
    # reductions
    "aten.sum.default": _SUM_OVER,
    "aten.sum.dim_IntList": _SUM_OVER,
    "aten.mean.default": Rule(reduce.freezing_reduce, dead=unknown_dead),
    "aten.mean.dim": _MEAN_OVER,
    "aten.amax.default": _MAXIMUM,
    "aten.amin.default": _MAXIMUM,
    "aten.max.dim": Rule(reduce.freezing_reduce_pair, dead=unknown_dead),
    "aten.min.dim": Rule(reduce.freezing_reduce_pair, dead=unknown_dead),
    "aten.argmax.default": _SPREAD,
    "aten.prod.dim_int": _SPREAD,
    "aten.var.correction": _SPREAD,
    "aten.var.dim": _SPREAD,
    "aten.std.correction": _SPREAD,
    "aten.std.dim": _SPREAD,
    "aten.linalg_vector_norm.default": _SPREAD,
    "aten.norm.ScalarOpt_dim": _SPREAD,
    "aten.logsumexp.default": _SPREAD,
    "aten.softmax.int": _SOFTMAX,
    "aten._softmax.default": _SOFTMAX,
    "aten.log_softmax.int": _SOFTMAX,
    # pooling and resampling
    **dict.fromkeys(
        (
            "aten.max_pool1d.default",
            "aten.max_pool2d.default",
            "aten.max_pool3d.default",
            "aten.avg_pool1d.default",
            "aten.avg_pool2d.default",
            "aten.avg_pool3d.default",
            "aten.adaptive_avg_pool1d.default",
            "aten.adaptive_avg_pool2d.default",
            "aten.adaptive_avg_pool3d.default",
            "aten.upsample_nearest1d.vec",
            "aten.upsample_nearest2d.vec",
            "aten.upsample_bilinear2d.vec",
        ),
        _POOL,
    ),
    "aten.adaptive_max_pool2d.default": Rule(pool.pool_with_indices, dead=pool.pool_dead),
    "aten.max_pool2d_with_indices.default": Rule(pool.pool_with_indices, dead=pool.pool_dead),
    # births
    "aten.zeros.default": _ZEROS,
    "aten.new_zeros.default": _ZEROS,
    "aten.zeros_like.default": _ZEROS_LIKE,
    "aten.ones.default": _FILL,
    "aten.new_ones.default": _FILL,
    "aten.ones_like.default": _FILL_LIKE,
    "aten.full.default": _FILL,
    "aten.new_full.default": _FILL,
    "aten.full_like.default": _FILL_LIKE,
}
"""What every operator does to the axes. `getitem` reads one of several outputs."""

__all__ = ["RULES"]
