"""Folding a flow whose weights do not change any more: what `FoldedFlow` runs.

Once, in float64 on the host:

- ActNorms, linear maps and changes of channel order between two couplings become one matrix product;
- the scales and shifts of layer norms move into the products behind them, the scale of queries into their projection;
- the source projection in front of keys and values is multiplied into theirs, and keys and values of all couplings with
  the same sizes come out of one product;
- weight norms and matrix inverses are computed.
"""

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from flow_layers.actnorm import ActNorm
from flow_layers.conditioners import SelfAttentionConditioner
from flow_layers.coupling import Coupling, FeatureSplit, TimeSplit
from flow_layers.invertible_linear import InvertibleLinear, MultiHeadLinear
from flow_layers.sequence_flow import MultiLevelFlow, SequenceFlow
from flow_layers.transforms import ADDITIVE, AFFINE
from sequencing.blocks import DecoderBlock


class AffineMap(NamedTuple):
    """`y = x @ matrix + shift` and its inverse, over channels."""

    matrix: tf.Tensor  # [D, D]
    shift: tf.Tensor  # [D]
    inverse_matrix: tf.Tensor
    inverse_shift: tf.Tensor
    log_det: tf.Tensor  # scalar, log|det matrix|: of one step


class FoldedCoupling(NamedTuple):
    """One coupling; layer norms are without scale and shift, which are in what follows them."""

    in_time: bool  # split by steps, else by channels
    order: str  # 'up' or 'down'
    affine: bool  # affine, else additive
    heads: int
    source: int  # place of its keys and values in the memory
    position_query: tuple  # (kernel, bias) of what positions ask, or () where they are added
    position_source: tuple  # (kernel, bias) of keys and values that positions look at
    first_scale: tf.Tensor  # [n], of the residual around self-attention; None where positions are added
    packed: tuple  # (kernel [n, 3 n], bias): queries, keys, values
    query: tuple  # (kernel, bias), of source attention
    query_scale: tf.Tensor  # [n], of the residual around source attention
    inner: tuple  # (kernel, bias), of feed-forward
    inner_scale: tf.Tensor  # [n], of the residual around feed-forward
    outer: tuple
    ends: tuple  # (kernel, bias): minus the shift, and minus what the sigmoid is taken of


def foldable(flow):
    """Whether `FoldedFlow` knows all parts of a flow. A subclass is no known part: it may do something else."""

    def known(layer):
        if type(layer) is Coupling:
            net = layer.conditioner
            usual = type(net) is SelfAttentionConditioner and type(net.layer) is DecoderBlock
            return usual and type(layer.split) in (FeatureSplit, TimeSplit) and layer.transform in (AFFINE, ADDITIVE)
        return type(layer) in (ActNorm, InvertibleLinear, MultiHeadLinear)

    return type(flow) is MultiLevelFlow and all(known(layer) for level in flow.layers for layer in _flat(level))


class Folding:
    """The parts of a flow, folded.

    Args:
      flow: `MultiLevelFlow`; see `foldable`.
      dtype: of the couplings' weights; those of affine maps and layer norms are float32.
    Attributes:
      levels: for each level its units, lists of `AffineMap` and `FoldedCoupling`, forwards.
      source_groups: couplings that read the source alike: (their places, heads, one kernel for all of them, one bias).
      couplings: how many there are.
    """

    def __init__(self, flow, dtype):
        self.dtype = dtype
        self._sources = []  # (kernel [D, 2 n], bias, heads) of each coupling
        self.levels = [self._fold_level(level, size) for level, size in zip(flow.layers, _level_sizes(flow))]
        self.source_groups, self.couplings = self._source_groups(), len(self._sources)

    def _fold_level(self, level, size):
        """`FoldedCoupling`s with the `AffineMap`s between them, forwards, a list for each unit."""
        halves = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])
        units, between = [], _Between(size)
        for layers in _units(level):
            units.append([])
            for layer in layers:
                if not isinstance(layer, Coupling):
                    between.then(layer)
                    continue
                order = halves if getattr(layer.split, 'interleaved', False) else np.arange(size)
                between.reorder(order)
                units[-1] += [*self._affine(between), self._fold_coupling(layer)]
                between = _Between(size)
                between.reorder(np.argsort(order))
        return [unit for unit in [*units, self._affine(between)] if unit]

    def _affine(self, between):
        """An `AffineMap` in a list; an empty list if there is nothing to do."""
        if not between.shift.any() and np.array_equal(between.matrix, np.eye(len(between.shift))):
            return []
        arrays = (between.matrix, between.shift, between.inverse, -between.shift @ between.inverse)
        return [AffineMap(*[self._constant(array, tf.float32) for array in (*arrays, between.log_det)])]

    def _fold_coupling(self, coupling):
        net, layer = coupling.conditioner, coupling.conditioner.layer
        own, source, feed = layer.self_attention, layer.source_attention, layer.feed_forward
        size, heads = own.kernel.shape[0], own.heads
        kernel, bias = _numpy(own.kernel), _numpy(own.bias)
        position_query = position_source = ()
        first_scale = None
        if net.position_attention is not None:
            block = net.position_attention
            position_query = self._pair(
                _numpy(block.query.kernel) * block.scale, _numpy(block.query.bias) * block.scale
            )
            position_source = self._pair(_numpy(block.source.kernel), _numpy(block.source.bias))
            first_scale, shift = _numpy(block.norm.scale), _numpy(block.norm.shift)
            kernel, bias = _behind_norm(block.norm, kernel, bias)
            bias[2 * size :] += (
                shift  # weights of attention add up to 1, so the residual's shift can go with the values
            )
            first_scale = self._constant(first_scale, tf.float32)
        kernel[:, :size] *= own.scale
        bias[:size] *= own.scale
        query = _behind_norm(own.norm, _numpy(source.query.kernel), _numpy(source.query.bias))
        inner = _behind_norm(source.norm, _numpy(feed.inner.kernel), _numpy(feed.inner.bias))
        outer = _numpy(feed.outer.kernel), _numpy(feed.outer.bias) + _numpy(source.norm.shift)
        ends = _behind_norm(feed.norm, net.linear.kernel(tf.float64).numpy(), _numpy(net.linear.bias))
        affine = coupling.transform is AFFINE
        if affine:
            ends[1][ends[1].size // 2 :] += 2.0
        self._sources.append(self._source_pair(net, source, own.norm))
        return FoldedCoupling(
            in_time=isinstance(coupling.split, TimeSplit), order=coupling.split.order, affine=affine, heads=heads,
            source=len(self._sources) - 1, position_query=position_query, position_source=position_source,
            first_scale=first_scale, packed=self._pair(kernel, bias),
            query=self._pair(query[0] * source.scale, query[1] * source.scale),
            query_scale=self._constant(_numpy(own.norm.scale), tf.float32), inner=self._pair(*inner),
            inner_scale=self._constant(_numpy(source.norm.scale), tf.float32), outer=self._pair(*outer),
            ends=self._pair(-ends[0], -ends[1]),
        )  # fmt: skip

    def _source_pair(self, net, source, norm):
        kernel, bias = _numpy(source.source.kernel), _numpy(source.source.bias)
        bias[bias.size // 2 :] += _numpy(norm.shift)  # as above: the shift of the residual, with the values
        if net.source_linear is not None:
            kernel = _numpy(net.source_linear.kernel) @ kernel
        return kernel, bias, source.heads

    def _source_groups(self):
        """Couplings of equal sizes: (their places, heads, one kernel for all of them, one bias)."""
        places = {}
        for i, (kernel, _, heads) in enumerate(self._sources):
            places.setdefault((kernel.shape, heads), []).append(i)
        return [
            (
                members,
                heads,
                *self._pair(
                    np.concatenate([self._sources[i][0] for i in members], axis=1),
                    np.concatenate([self._sources[i][1] for i in members]),
                ),
            )
            for (_, heads), members in places.items()
        ]

    def _constant(self, array, dtype):
        return tf.cast(np.asarray(array, np.float32), dtype)

    def _pair(self, kernel, bias):
        return self._constant(kernel, self.dtype), self._constant(bias, self.dtype)


def _units(flow):
    """The layers below, in forward order, in lists that end where a flow of couplings ends; most lists are alike."""
    unit = []
    for layer in flow.layers if isinstance(flow, SequenceFlow) else [flow]:
        if not isinstance(layer, SequenceFlow):
            unit.append(layer)
            continue
        for inner in _units(layer):
            yield unit + inner
            unit = []
    if unit:
        yield unit


def _flat(layer):
    """The layers of a nest of `SequenceFlow`s, in forward order."""
    if isinstance(layer, SequenceFlow):
        for inner in layer.layers:
            yield from _flat(inner)
    else:
        yield layer


def _level_sizes(flow):
    """Channels of each level."""
    deeper = [2 * kept for kept in flow.kept]
    first = next(layer for layer in _flat(flow.layers[0]))
    depth = (
        first.log_scale.shape[0]
        if isinstance(first, ActNorm)
        else first.split.condition_size + first.split.changed_size
    )
    return [depth, *deeper]


class _Between:
    """The affine map between two couplings, put together layer by layer: `y = x @ matrix + shift`, in float64."""

    def __init__(self, size):
        self.matrix, self.inverse, self.shift, self.log_det = np.eye(size), np.eye(size), np.zeros(size), 0.0

    def reorder(self, order):
        """Then takes channel `order[i]` for channel i."""
        self.matrix, self.inverse, self.shift = self.matrix[:, order], self.inverse[order], self.shift[order]

    def then(self, layer):
        """Then applies an ActNorm or a linear map."""
        if isinstance(layer, ActNorm):
            log_scale = _numpy(layer.log_scale)
            scale = np.exp(log_scale)
            self.matrix, self.inverse = self.matrix * scale, self.inverse / scale[:, np.newaxis]
            self.shift = self.shift * scale + _numpy(layer.shift)
            self.log_det += log_scale.sum()
            return
        head = layer.weight(tf.float64).numpy()
        matrix = _by_heads(layer, np.concatenate([self.matrix, self.shift[np.newaxis]]), head.T)
        self.matrix, self.shift = matrix[:-1], matrix[-1]
        self.inverse = _by_heads(layer, self.inverse.T, np.linalg.inv(head)).T
        self.log_det += layer.heads * np.linalg.slogdet(head)[1]


def _by_heads(layer, rows, matrix):
    """Multiplies every head of each row by a matrix, from the right."""
    if layer.heads > 1 and layer.kind == 'b':
        heads = rows.reshape(len(rows), layer.size, layer.heads).transpose(0, 2, 1)
        return (heads @ matrix).transpose(0, 2, 1).reshape(rows.shape)
    return (rows.reshape(len(rows), layer.heads, layer.size) @ matrix).reshape(rows.shape)


def _numpy(variable):
    return variable.numpy().astype(np.float64)


def _behind_norm(norm, kernel, bias):
    """The linear map `kernel, bias` of what a layer norm gives, as one of its normalised input."""
    return _numpy(norm.scale)[:, np.newaxis] * kernel, _numpy(norm.shift) @ kernel + bias
