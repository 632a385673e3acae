"""The table from operator (by overload) to rule. A new operator is one line here and, at most, one function."""

from __future__ import annotations

from dataclasses import replace

from paretoprune.graph.op import Rule, unknown_dead
from paretoprune.graph.rules import (
    attention,
    contraction,
    create,
    cumulative,
    einsum,
    index,
    normalise,
    pieces,
    pointwise,
    pool,
    recurrent,
    reduce,
    scatter,
    shape,
    shuffle,
    spectral,
)

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
_EINSUM = Rule(einsum.einsum, dead=einsum.einsum_dead, macs=einsum.einsum_macs)
_ADDED = Rule(einsum.added, dead=einsum.added_dead, macs=einsum.einsum_macs)
_RUNS = Rule(einsum.grouped_product, dead=einsum.grouped_product_dead, macs=einsum.grouped_product_macs)
_BAGS = Rule(index.embedding_bag, dead=index.embedding_bag_dead, empty=True)
_COUNTING = Rule(index.counting, dead=unknown_dead)
_RANKED = Rule(index.ranked, dead=unknown_dead)
_VALUES_DECIDE = Rule(index.all_by_position, dead=unknown_dead)
_TRIANGLE = Rule(index.triangle)
_SCATTER = Rule(scatter.scatter, dead=scatter.written_dead)
_INDEX_ADD = Rule(scatter.index_add, dead=scatter.written_dead)
_MASKED_FILL = Rule(scatter.masked_fill, dead=scatter.written_dead)
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
_SPLIT = Rule(pieces.split, resize=pieces.split_resize, empty=True)
_PAD = Rule(pieces.pad, dead=pieces.pad_dead, resize=pieces.pad_resize)
_POOL = Rule(pool.pool, dead=pool.pool_dead)
_SUM_OVER = Rule(reduce.reduce, dead=reduce.sum_dead)
_MEAN_OVER = Rule(reduce.mean, dead=reduce.mean_dead, resize=reduce.mean_resize, masked=reduce.mean_masked)
_NORM = Rule(reduce.norm, dead=reduce.norm_dead)
_MAXIMUM = Rule(reduce.maximum, dead=reduce.maximum_dead)
_SPREAD = Rule(reduce.freezing_reduce, dead=unknown_dead)
_SPREAD_PAIR = Rule(reduce.freezing_reduce_pair, dead=unknown_dead)
_ZERO_SPREAD = Rule(reduce.freezing_reduce, dead=reduce.spread_dead)
_VARIANCE = Rule(reduce.spread, dead=reduce.spread_dead, masked=reduce.var_masked)
_DEVIATION = Rule(reduce.spread, dead=reduce.spread_dead, masked=reduce.std_masked)
_VARIANCE_MEAN = Rule(reduce.spread, dead=reduce.spread_dead, masked=reduce.var_mean_masked)
_DEVIATION_MEAN = Rule(reduce.spread, dead=reduce.spread_dead, masked=reduce.std_mean_masked)
_SOFTMAX = Rule(reduce.softmax, dead=unknown_dead)
_ZEROS = Rule(create.fill, dead=create.zero_dead, resize=create.fill_resize)
_ZEROS_LIKE = Rule(create.fill_like, dead=create.zero_dead)
_FILL = Rule(create.fill, dead=unknown_dead, resize=create.fill_resize)
_FILL_LIKE = Rule(create.fill_like, dead=unknown_dead)
_RANDOM = Rule(create.random, dead=unknown_dead)
_RANDOM_LIKE = Rule(create.random_like, dead=unknown_dead)
_BOTH = Rule(pointwise.pointwise, dead=pointwise.sum_dead)
_EITHER = Rule(pointwise.pointwise, dead=pointwise.either_dead)
_FIRST = Rule(pointwise.pointwise, dead=pointwise.first_dead)
_SEQUENCE = Rule(
    recurrent.sequence,
    dead=recurrent.sequence_dead,
    macs=recurrent.sequence_macs,
    rows=contraction.linear_rows,
    reads=recurrent.sequence_reads,
    mode=6,
)
_CELL = Rule(recurrent.cell, dead=recurrent.cell_dead, macs=recurrent.cell_macs)
_MOVED = Rule(shuffle.moved)
_RUNNING = Rule(cumulative.running, dead=unknown_dead)
_TRANSFORM = Rule(spectral.transform, dead=spectral.transform_dead)

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
    "aten.bilinear.default": Rule(contraction.bilinear, dead=contraction.bilinear_dead, macs=contraction.bilinear_macs),
    "aten.matmul.default": _MATRIX,
    "aten.mm.default": _MATRIX,
    "aten.bmm.default": _MATRIX,
    "aten.addmm.default": Rule(contraction.addmm, dead=contraction.addmm_dead, macs=contraction.addmm_macs),
    **dict.fromkeys(
        (
            "aten.einsum.default",
            "aten.tensordot.default",
            "aten.inner.default",
            "aten.outer.default",
            "aten.ger.default",
            "aten.dot.default",
            "aten.vdot.default",
            "aten.mv.default",
        ),
        _EINSUM,
    ),
    "aten.baddbmm.default": _ADDED,
    "aten.addbmm.default": _ADDED,
    "aten.addmv.default": _ADDED,
    "aten.addr.default": _ADDED,
    "aten._grouped_mm.default": _RUNS,
    "transformers.grouped_mm_fallback.default": _RUNS,
    "aten.scaled_dot_product_attention.default": Rule(
        attention.attention,
        dead=attention.attention_dead,
        resize=attention.attention_resize,
        macs=attention.attention_macs,
    ),
    # reading and writing by number
    "aten.embedding.default": Rule(index.embedding, dead=index.embedding_dead),
    "aten.embedding_bag.default": _BAGS,
    "aten.embedding_bag.padding_idx": _BAGS,
    "aten._embedding_bag.default": _BAGS,
    "aten.index.Tensor": Rule(index.index, dead=index.index_dead),
    "aten.index_select.default": Rule(index.index_select, dead=index.one_index_dead),
    "aten.gather.default": Rule(index.gather, dead=index.gather_dead),
    "aten.take_along_dim.default": Rule(index.take_along, dead=index.take_along_dead),
    "aten.take.default": Rule(index.take, dead=unknown_dead),
    "aten.repeat_interleave.self_int": Rule(index.repeat_interleave, resize=index.repeat_interleave_resize),
    **dict.fromkeys(
        (
            "aten.scatter.src",
            "aten.scatter.value",
            "aten.scatter.reduce",
            "aten.scatter.value_reduce",
            "aten.scatter_add.default",
            "aten.scatter_reduce.two",
        ),
        _SCATTER,
    ),
    "aten.index_add.default": _INDEX_ADD,
    "aten.index_copy.default": _INDEX_ADD,
    "aten.index_fill.int_Scalar": _INDEX_ADD,
    "aten.index_put.default": Rule(scatter.index_put, dead=scatter.written_dead),
    "aten.masked_fill.Scalar": _MASKED_FILL,
    "aten.masked_fill.Tensor": _MASKED_FILL,
    "aten.tril.default": _TRIANGLE,
    "aten.triu.default": _TRIANGLE,
    **dict.fromkeys(
        (
            "aten.arange.default",
            "aten.arange.start",
            "aten.arange.start_step",
            "aten.linspace.default",
            "aten.eye.default",
            "aten.eye.m",
            "aten.one_hot.default",
        ),
        _COUNTING,
    ),
    **dict.fromkeys(
        (
            "aten.topk.default",
            "aten.sort.default",
            "aten.sort.stable",
            "aten.argsort.default",
            "aten.argsort.stable",
            "aten.kthvalue.default",
            "aten.median.dim",
            "aten.mode.default",
        ),
        _RANKED,
    ),
    "aten.bucketize.Tensor": Rule(index.bucketize, dead=unknown_dead),
    **dict.fromkeys(
        (
            "aten.nonzero.default",
            "aten.masked_select.default",
            "aten.histc.default",
            "aten.bincount.default",
            "aten.searchsorted.Tensor",
            "aten.isin.Tensor_Tensor",
        ),
        _VALUES_DECIDE,
    ),
    # normalisation
    "aten.batch_norm.default": Rule(
        normalise.batch_norm, dead=normalise.batch_norm_dead, masked=normalise.batch_norm_masked, mode=5
    ),
    "aten.instance_norm.default": Rule(normalise.instance_norm, dead=normalise.instance_norm_dead, mode=5),
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
    # pointwise: f(0) = 0
    **dict.fromkeys(
        (
            *("aten.relu.default", "aten.relu6.default", "aten.leaky_relu.default", "aten.elu.default"),
            *("aten.selu.default", "aten.celu.default", "aten.gelu.default", "aten.silu.default"),
            *("aten.mish.default", "aten.hardswish.default"),
            *("aten.hardshrink.default", "aten.softshrink.default", "aten.abs.default", "aten.absolute.default"),
            *("aten.neg.default", "aten.negative.default", "aten.sign.default", "aten.sgn.default"),
            *("aten.square.default", "aten.sqrt.default", "aten.round.default", "aten.round.decimals"),
            *("aten.floor.default", "aten.ceil.default", "aten.trunc.default", "aten.fix.default"),
            *("aten.frac.default", "aten.sin.default", "aten.tan.default", "aten.asin.default"),
            *("aten.arcsin.default", "aten.atan.default", "aten.arctan.default", "aten.sinh.default"),
            *("aten.tanh.default", "aten.asinh.default", "aten.arcsinh.default", "aten.atanh.default"),
            *("aten.arctanh.default", "aten.erf.default", "aten.special_erf.default", "aten.erfinv.default"),
            *("aten.expm1.default", "aten.special_expm1.default", "aten.log1p.default", "aten.special_log1p.default"),
            *("aten.deg2rad.default", "aten.rad2deg.default", "aten.isnan.default", "aten.isinf.default"),
            *("aten.nan_to_num.default", "aten.signbit.default", "aten.real.default", "aten.imag.default"),
            *("aten.conj.default", "aten._conj.default", "aten.conj_physical.default", "aten.resolve_conj.default"),
        ),
        _ZERO_STAYS,
    ),
    "aten.rrelu.default": Rule(pointwise.pointwise, dead=pointwise.zero_stays, mode=3),
    "aten.threshold.default": Rule(pointwise.pointwise, dead=pointwise.threshold_dead),
    # pointwise: any other value
    **dict.fromkeys(
        (
            *("aten.sigmoid.default", "aten.special_expit.default", "aten.hardsigmoid.default", "aten.logit.default"),
            *("aten.special_logit.default", "aten.log_sigmoid.default", "aten.softplus.default", "aten.exp.default"),
            *("aten.exp2.default", "aten.special_exp2.default", "aten.log.default", "aten.log2.default"),
            *("aten.log10.default", "aten.rsqrt.default", "aten.reciprocal.default", "aten.cos.default"),
            *("aten.cosh.default", "aten.acos.default", "aten.arccos.default", "aten.acosh.default"),
            *("aten.arccosh.default", "aten.erfc.default", "aten.sinc.default", "aten.lgamma.default"),
            *("aten.digamma.default", "aten.i0.default", "aten.angle.default", "aten.isfinite.default"),
            *("aten.logical_not.default", "aten.bitwise_not.default", "aten.pow.Scalar", "aten.pow.Tensor_Tensor"),
            *("aten.float_power.Scalar", "aten.float_power.Tensor_Tensor", "aten.atan2.default"),
            *("aten.arctan2.default", "aten.logaddexp.default", "aten.logaddexp2.default", "aten.heaviside.default"),
            *("aten.xlogy.Tensor", "aten.xlogy.Scalar_Other", "aten.xlogy.Scalar_Self", "aten.special_xlog1py.default"),
            *("aten.remainder.Scalar_Tensor", "aten.bitwise_left_shift.Tensor", "aten.bitwise_right_shift.Tensor"),
            *("aten.clamp.Tensor", "aten.clip.Tensor", "aten.clamp_min.Tensor", "aten.clamp_max.Tensor"),
            *(f"aten.{c}.{o}" for c in ("eq", "ne", "gt", "ge", "lt", "le") for o in ("Scalar", "Tensor")),
            *(f"aten.{c}.{o}" for c in ("not_equal", "greater", "greater_equal") for o in ("Scalar", "Tensor")),
            *(f"aten.{c}.{o}" for c in ("less", "less_equal") for o in ("Scalar", "Tensor")),
        ),
        _ANY_VALUE,
    ),
    # pointwise: bounds, two operands
    "aten.clamp.default": _CLAMP,
    "aten.clip.default": _CLAMP,
    "aten.hardtanh.default": _CLAMP,
    "aten.clamp_min.default": _CLAMP,
    "aten.clamp_max.default": _CLAMP,
    "aten.prelu.default": Rule(pointwise.prelu, dead=pointwise.first_dead),
    "aten._prelu_kernel.default": _FIRST,
    "aten.copysign.Tensor": _FIRST,
    "aten.copysign.Scalar": _FIRST,
    "aten.ldexp.Tensor": _FIRST,
    "aten.add.Tensor": _SUM,
    "aten.add.Scalar": _SUM,
    "aten.sub.Tensor": _SUM,
    "aten.sub.Scalar": _SUM,
    "aten.subtract.Tensor": _SUM,
    "aten.rsub.Tensor": _SUM,
    "aten.rsub.Scalar": _SUM,
    **dict.fromkeys(
        (
            *("aten.maximum.default", "aten.minimum.default", "aten.max.other", "aten.min.other"),
            *("aten.fmax.default", "aten.fmin.default", "aten.hypot.default", "aten.logical_or.default"),
            *("aten.logical_xor.default", "aten.bitwise_or.Tensor", "aten.bitwise_xor.Tensor"),
            *("aten.__or__.Tensor", "aten.__xor__.Tensor"),
        ),
        _BOTH,
    ),
    **dict.fromkeys(
        (
            *("aten.where.self", "aten.where.ScalarSelf", "aten.where.ScalarOther", "aten.where.Scalar"),
            *("aten.lerp.Scalar", "aten.lerp.Tensor"),
        ),
        _EITHER,
    ),
    **dict.fromkeys(
        (
            *("aten.mul.Tensor", "aten.mul.Scalar", "aten.multiply.Tensor", "aten.multiply.Scalar"),
            *("aten.logical_and.default", "aten.bitwise_and.Tensor", "aten.bitwise_and.Scalar"),
            *("aten.__and__.Tensor", "aten.__and__.Scalar"),
        ),
        _TIMES,
    ),
    **dict.fromkeys(
        (
            *("aten.div.Tensor", "aten.div.Scalar", "aten.div.Tensor_mode", "aten.div.Scalar_mode"),
            *("aten.divide.Tensor", "aten.divide.Scalar", "aten.true_divide.Tensor", "aten.true_divide.Scalar"),
            *("aten.floor_divide.default", "aten.floor_divide.Scalar", "aten.fmod.Scalar", "aten.fmod.Tensor"),
            *("aten.remainder.Scalar", "aten.remainder.Tensor"),
        ),
        _QUOTIENT,
    ),
    "aten.pow.Tensor_Scalar": _POWER,
    "aten.float_power.Tensor_Scalar": _POWER,
    "aten.addcmul.default": Rule(pointwise.pointwise, dead=pointwise.addcmul_dead),
    "aten.addcdiv.default": Rule(pointwise.pointwise, dead=pointwise.addcdiv_dead),
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
    "aten.repeat.default": Rule(shape.repeat, resize=shape.repeat_resize),
    "aten.tile.default": Rule(shape.repeat, resize=shape.repeat_resize),
    # pieces
    "aten.cat.default": Rule(pieces.cat, empty=True),
    "aten.concat.default": Rule(pieces.cat, empty=True),
    "aten.stack.default": Rule(pieces.stack),
    "aten.split.Tensor": _SPLIT,
    "aten.split.sizes": _SPLIT,
    "aten.split_with_sizes.default": _SPLIT,
    "aten.chunk.default": _SPLIT,
    "aten.unsafe_split.Tensor": _SPLIT,
    "aten.unsafe_split_with_sizes.default": _SPLIT,
    "aten.unsafe_chunk.default": _SPLIT,
    "aten.tensor_split.sections": _SPLIT,
    "aten.tensor_split.indices": _SPLIT,
    **dict.fromkeys((f"aten.{d}split.{o}" for d in "hvd" for o in ("int", "array")), _SPLIT),
    "aten.narrow.default": Rule(pieces.narrow, resize=pieces.narrow_resize),
    "aten.slice.Tensor": Rule(pieces.slice_, resize=pieces.slice_resize, empty=True),
    "aten.select.int": Rule(pieces.select),
    "aten.unbind.int": Rule(pieces.unbind),
    "aten.pad.default": _PAD,
    "aten.constant_pad_nd.default": _PAD,
    **dict.fromkeys(
        (f"aten.{kind}_pad{d}d.default" for kind in ("reflection", "replication") for d in (1, 2, 3)),
        Rule(pieces.edge_pad, dead=pieces.edge_pad_dead),
    ),
    "aten.glu.default": Rule(shuffle.glu, dead=shuffle.glu_dead),
    "getitem": Rule(pieces.take_output, dead=pieces.take_output_dead, empty=True),
    # reductions
    "aten.sum.default": _SUM_OVER,
    "aten.sum.dim_IntList": _SUM_OVER,
    "aten.nansum.default": _SUM_OVER,
    "aten.count_nonzero.default": _SUM_OVER,
    "aten.count_nonzero.dim_IntList": _SUM_OVER,
    "aten.any.default": _SUM_OVER,
    "aten.any.dim": _SUM_OVER,
    "aten.any.dims": _SUM_OVER,
    "aten.mean.default": _MEAN_OVER,
    "aten.mean.dim": _MEAN_OVER,
    "aten.amax.default": _MAXIMUM,
    "aten.max.default": _MAXIMUM,
    "aten.max.dim": _MAXIMUM,
    "aten.amin.default": _ZERO_SPREAD,
    "aten.min.default": _ZERO_SPREAD,
    "aten.min.dim": _SPREAD_PAIR,
    "aten.aminmax.default": _SPREAD_PAIR,
    "aten.argmax.default": _SPREAD,
    "aten.argmin.default": _SPREAD,
    "aten.all.default": _SPREAD,
    "aten.all.dim": _SPREAD,
    "aten.prod.default": _SPREAD,
    "aten.prod.dim_int": _SPREAD,
    "aten.logsumexp.default": _SPREAD,
    "aten.linalg_vector_norm.default": _NORM,
    "aten.linalg_norm.default": _NORM,
    "aten.norm.Scalar": _NORM,
    "aten.norm.ScalarOpt_dim": _NORM,
    **dict.fromkeys(("aten.var.default", "aten.var.dim", "aten.var.correction"), _VARIANCE),
    **dict.fromkeys(("aten.std.default", "aten.std.dim", "aten.std.correction"), _DEVIATION),
    **dict.fromkeys(("aten.var_mean.default", "aten.var_mean.dim", "aten.var_mean.correction"), _VARIANCE_MEAN),
    **dict.fromkeys(("aten.std_mean.default", "aten.std_mean.dim", "aten.std_mean.correction"), _DEVIATION_MEAN),
    "aten.softmax.int": _SOFTMAX,
    "aten._softmax.default": _SOFTMAX,
    "aten.log_softmax.int": _SOFTMAX,
    # pooling and resampling
    **dict.fromkeys(
        (
            *(f"aten.max_pool{d}d.default" for d in (1, 2, 3)),
            *(f"aten.avg_pool{d}d.default" for d in (1, 2, 3)),
            *(f"aten.adaptive_avg_pool{d}d.default" for d in (1, 2, 3)),
            *(f"aten._adaptive_avg_pool{d}d.default" for d in (2, 3)),
            *(
                f"aten.{mode}.{overload}"
                for mode in (
                    *("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d"),
                    *("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", "upsample_linear1d"),
                    *("upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
                    *("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "_upsample_lanczos2d_aa"),
                )
                for overload in ("vec", "default")
            ),
        ),
        _POOL,
    ),
    **dict.fromkeys(
        (
            *(f"aten.adaptive_max_pool{d}d.default" for d in (1, 2, 3)),
            *("aten.max_pool1d_with_indices.default", "aten.max_pool2d_with_indices.default"),
            "aten.max_pool3d_with_indices.default",
        ),
        Rule(pool.pool_with_indices, dead=pool.pool_dead),
    ),
    "aten.fractional_max_pool2d.default": Rule(pool.random_pool, dead=pool.pool_dead),
    "aten.fractional_max_pool3d.default": Rule(pool.random_pool, dead=pool.pool_dead),
    "aten.max_unpool2d.default": Rule(pool.unpool, dead=pool.unpool_dead),
    "aten.max_unpool3d.default": Rule(pool.unpool, dead=pool.unpool_dead),
    **dict.fromkeys(
        ("aten.grid_sampler.default", "aten.grid_sampler_2d.default", "aten.grid_sampler_3d.default"),
        Rule(pool.sample, dead=pool.sample_dead),
    ),
    "aten.affine_grid_generator.default": Rule(pool.coordinates, dead=unknown_dead),
    # positions that move
    "aten.pixel_shuffle.default": Rule(shuffle.pixel_shuffle),
    "aten.pixel_unshuffle.default": Rule(shuffle.pixel_unshuffle),
    **dict.fromkeys(
        ("aten.channel_shuffle.default", "aten.native_channel_shuffle.default"),
        Rule(shuffle.channel_shuffle, resize=shuffle.channel_shuffle_resize),
    ),
    "aten.im2col.default": Rule(shuffle.im2col),
    "aten.col2im.default": Rule(shuffle.col2im),
    "aten.unfold.default": Rule(shuffle.windows),
    "aten.roll.default": _MOVED,
    "aten.flip.default": _MOVED,
    "aten.fliplr.default": Rule(shuffle.mirrored),
    "aten.flipud.default": Rule(shuffle.mirrored),
    "aten.rot90.default": Rule(shuffle.rot90),
    "aten.diagonal.default": Rule(shuffle.diagonal),
    "aten.diff.default": Rule(shuffle.difference),
    # running along a dim
    "aten.cumsum.default": Rule(cumulative.running_sum, dead=cumulative.running_sum_dead),
    "aten.cumprod.default": Rule(cumulative.running, dead=cumulative.running_product_dead),
    "aten.logcumsumexp.default": _RUNNING,
    "aten.cummax.default": _RUNNING,
    "aten.cummin.default": _RUNNING,
    # recurrent
    **dict.fromkeys((f"aten.{kind}.input" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")), _SEQUENCE),
    **dict.fromkeys(
        (f"aten.{kind}.data" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")), replace(_SEQUENCE, mode=7)
    ),
    **dict.fromkeys((f"aten.{kind}_cell.default" for kind in ("lstm", "gru", "rnn_tanh", "rnn_relu")), _CELL),
    # complex numbers
    **dict.fromkeys(
        (
            *(f"aten.fft_{i}{kind}fft{n}.default" for i in ("", "i") for kind in ("", "r") for n in ("", "2", "n")),
            *("aten.fft_hfft.default", "aten.fft_ihfft.default"),
            *("aten.fft_fftshift.default", "aten.fft_ifftshift.default"),
        ),
        _TRANSFORM,
    ),
    "aten.stft.default": Rule(spectral.short_time, dead=spectral.transform_dead),
    "aten.stft.center": Rule(spectral.short_time, dead=spectral.transform_dead),
    "aten.view_as_real.default": Rule(spectral.split_parts, dead=spectral.parts_dead),
    "aten.view_as_complex.default": Rule(spectral.join_parts, dead=spectral.parts_dead),
    "aten.complex.default": Rule(pointwise.pointwise, dead=spectral.pair_dead),
    "aten.polar.default": Rule(pointwise.pointwise, dead=spectral.pair_dead),
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
    "aten.empty_like.default": _FILL_LIKE,
    **dict.fromkeys(
        (
            *("aten.rand.default", "aten.randn.default", "aten.randint.default", "aten.randint.low"),
            *("aten.randperm.default", "aten.normal.float_float"),
        ),
        _RANDOM,
    ),
    **dict.fromkeys(
        (
            *("aten.rand_like.default", "aten.randn_like.default", "aten.randint_like.default"),
            *("aten.bernoulli.default", "aten.bernoulli.p", "aten.normal.Tensor_float", "aten.normal.float_Tensor"),
            *("aten.normal.Tensor_Tensor", "aten.poisson.default"),
        ),
        _RANDOM_LIKE,
    ),
}
"""What every operator does to the axes. `getitem` reads one of several outputs."""

__all__ = ["RULES"]
