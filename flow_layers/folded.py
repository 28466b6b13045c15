"""A flow whose weights do not change any more, run in as few and as large operations as possible.

What runs at inference is the executor's cost of thousands of small operations; `folding.py` makes fewer of them.
In a graph, units of equal sizes share one trace, which gets the folded weights as arguments: a graph that held them as
constants would be copied, weights and all, by each step of TensorFlow's rewriting.
Padding is left to itself: no real step looks at it, and it is set to zero at the end. Both directions and their
log-dets are those of the flow it was made from, which has self-attention couplings with affine or additive transforms.
"""

import functools

import tensorflow as tf

from flow_layers.bijector import FlowMemory
from flow_layers.folding import AffineMap, FoldedCoupling, Folding
from flow_layers.one_trace import apart, traces_apart
from sequencing.blocks import Rows

EPSILON = 1e-5  # of layer norms


class FoldedFlow:
    """The same map as the `MultiLevelFlow` it is made from, faster, as long as that flow's weights stay as they are.

    Args:
      flow: `MultiLevelFlow`; see `folding.foldable`.
      dtype: of the couplings' arithmetic; latents, layer norms and softmax stay float32.
    """

    def __init__(self, flow, dtype=tf.float32):
        folding = Folding(flow, dtype)
        self.dtype, self.kept, self.levels = dtype, flow.kept, folding.levels
        self._source_groups, self._couplings = folding.source_groups, folding.couplings

    def prepare(self, outputs, mask):
        """As `SequenceFlow.prepare`."""
        rows = Rows(mask)
        flat = tf.cast(rows.flat(outputs), self.dtype)
        projected = [None] * self._couplings
        for members, heads, kernel, bias in self._source_groups:
            for i, pair in zip(members, _pairs(_linear(flat, (kernel, bias)), rows, len(members), heads)):
                projected[i] = (pair[0], pair[1])
        return FlowMemory(tf.cast(outputs, self.dtype), mask, tuple(projected))

    def forward_and_log_det(self, x, mask, memory, seed=None):
        """As `SequenceBijector.forward_and_log_det`, without dropout."""
        return self._both(self._forward_from, x, mask, memory)

    def inverse_and_log_det(self, y, mask, memory, seed=None):
        """As `SequenceBijector.inverse_and_log_det`, without dropout."""
        return self._both(self._inverse_from, y, mask, memory)

    def _both(self, direction, x, mask, memory):
        rows = Rows(mask)
        y, log_det = direction(0, rows.flat(x), _Place(rows, memory, _Shared()))
        return rows.padded(rows.only_real(y)), log_det

    def _forward_from(self, level, x, at):
        log_det = 0.0
        for unit in self.levels[level]:
            x, more = self._run(unit, x, at, forwards=True)
            log_det += more
        if level == len(self.levels) - 1:
            return x, log_det
        keep, done = self._split(level, x)
        keep, deeper = self._forward_from(level + 1, tf.reshape(keep, [-1, 2 * self.kept[level]]), at.paired())
        return tf.concat([tf.reshape(keep, [-1, self.kept[level]]), done], axis=1), log_det + deeper

    def _inverse_from(self, level, y, at):
        log_det = 0.0
        if level < len(self.levels) - 1:
            keep, done = self._split(level, y)
            keep, log_det = self._inverse_from(level + 1, tf.reshape(keep, [-1, 2 * self.kept[level]]), at.paired())
            y = tf.concat([tf.reshape(keep, [-1, self.kept[level]]), done], axis=1)
        for unit in reversed(self.levels[level]):
            y, more = self._run(unit, y, at, forwards=False)
            log_det += more
        return y, log_det

    def _split(self, level, x):
        return tf.split(x, [self.kept[level], x.shape[1] - self.kept[level]], axis=1)

    def _run(self, unit, x, at, forwards):
        """Applies the parts of a unit to flat rows, and gives the log-det.

        In a graph, units of equal sizes share a trace, which gets the weights as arguments (see `one_trace.apart`); the
        first unit's `run` serves them all.
        """
        sources, parts = [], []  # each with the other's place within the unit, by which units share a trace
        for part in unit:
            if isinstance(part, FoldedCoupling):
                sources.append(at.memory.projected[part.source])
                part = part._replace(source=len(sources) - 1)
            parts.append(part)

        def run(parts, x, sources):
            state, inside = _State(x), at.inside()
            log_dets = [
                self._apply(part, sources, state, inside, forwards) for part in (parts if forwards else reversed(parts))
            ]
            return state.whole(), sum(log_dets)

        if traces_apart():
            run = at.rows.kept(('unit', forwards), functools.partial(apart, run))
        return run(parts, x, sources)

    def _apply(self, part, sources, state, at, forwards):
        """Applies one part to `state` and returns its log-det."""
        if isinstance(part, AffineMap):
            kernel, bias = (part.matrix, part.shift) if forwards else (part.inverse_matrix, part.inverse_shift)
            state.replace(_linear(state.whole(), (kernel, bias)))
            return (part.log_det if forwards else -part.log_det) * at.rows.counts(tf.float32)
        if part.in_time:
            parts, places = state.steps(), (at.even(), at.odd())
        else:
            sizes = part.packed[0].shape[0], part.ends[0].shape[1] // (2 if part.affine else 1)
            parts, places = state.parts(sizes[0] if part.order == 'up' else sizes[1]), (at, at)
        swap = part.order == 'down'
        condition, changed = parts[::-1] if swap else parts
        places = places[::-1] if swap else places
        changed, log_det = self._changed(part, condition, changed, sources[part.source], *places, forwards)
        parts = (changed, condition) if swap else (condition, changed)
        if part.in_time:
            state.join_steps(parts)
        else:
            state.replace(parts)
        return log_det

    def _changed(self, part, condition, changed, source, at, changed_at, forwards):
        ends = tf.cast(_linear(self._features(part, condition, source, at), part.ends), tf.float32)
        if not part.affine:
            return (changed - ends if forwards else changed + ends), at.shared(0.0)
        shift, raw = tf.raw_ops.Split(axis=at.shared(1), value=ends, num_split=2)
        slope = tf.exp(raw) + at.shared(1.0)  # 1 / sigmoid(-raw)
        log_det = changed_at.rows.sums(tf.math.log(slope))
        if forwards:
            return changed / slope - shift, -log_det
        return (changed + shift) * slope, log_det

    def _features(self, part, x, source, at):
        """What the last linear reads: one decoder layer over the rows and the source, its norms unscaled."""
        dtype, heads, shared = self.dtype, part.heads, at.shared
        signal = at.positions(part.query_scale.shape[0])
        if part.position_query:
            queries = at.split(_linear(tf.cast(signal, dtype), part.position_query), heads)
            keys, values = at.split_packed(_linear(tf.cast(x, dtype), part.position_source), heads, 2)
            x = shared.normal(signal + at.found(queries, keys, values, at.key_bias(dtype)))
            residual = x * part.first_scale
        else:
            residual = x = x + signal
        queries, keys, values = at.split_packed(_linear(tf.cast(x, dtype), part.packed), heads, 3)
        x = shared.normal(residual + at.found(queries, keys, values, at.key_bias(dtype)))
        queries = at.split(_linear(tf.cast(x, dtype), part.query), heads, over_source=True)
        keys, values = source
        x = shared.normal(x * part.query_scale + at.found(queries, keys, values, at.source_bias()))
        hidden = _linear(tf.nn.relu(_linear(tf.cast(x, dtype), part.inner)), part.outer)
        return tf.cast(shared.normal(x * part.inner_scale + tf.cast(hidden, tf.float32)), dtype)


class _Shared:
    """Small constants of one trace, each made once: thousands of them would cost more than the arithmetic."""

    def __init__(self):
        self._kept = {}

    def __call__(self, value):
        key = (type(value).__name__, str(value))
        if key not in self._kept:
            self._kept[key] = tf.constant(value)
        return self._kept[key]

    def normal(self, x):
        """Layer norm without scale and shift, float32."""
        centered = x - tf.raw_ops.Mean(input=x, axis=self([1]), keep_dims=True)
        variance = tf.raw_ops.Mean(input=tf.raw_ops.Square(x=centered), axis=self([1]), keep_dims=True)
        return centered * tf.raw_ops.Rsqrt(x=variance + self(EPSILON))


class _Place:
    """The rows of one level, and what their attention needs, each made once.

    Args:
      rows: `Rows`; memory: `FlowMemory` that `prepare` gave; shared: `_Shared`.
    """

    def __init__(self, rows, memory, shared):
        self.rows, self.memory, self.shared = rows, memory, shared

    def inside(self):
        """The same for a function that is traced apart, which has constants of its own."""
        return _Place(self.rows, self.memory, _Shared())

    def even(self):
        return self._with_mask('even', lambda mask: mask[:, ::2])

    def odd(self):
        return self._with_mask('odd', lambda mask: mask[:, 1::2])

    def paired(self):
        return self._with_mask('paired', lambda mask: mask[:, ::2] | mask[:, 1::2])

    def _with_mask(self, key, make):
        return _Place(self.rows.kept(key, lambda: Rows(make(self.rows.mask))), self.memory, self.shared)

    def key_bias(self, dtype):
        return self.rows.key_bias(dtype)

    def source_bias(self):
        return self.rows.kept('source bias', lambda: Rows(self.memory.mask).key_bias(self.memory.outputs.dtype))

    def positions(self, size):
        """The signal of positions 1, 2, ..., at padding too."""
        return self.rows.kept(('signal', size), lambda: Rows(tf.ones_like(self.rows.mask)).positions(size, tf.float32))

    def _shape(self, *sizes):
        return self.rows.kept(('shape', sizes), lambda: tf.stack(_sizes_of(sizes, self)))

    def split(self, x, heads, over_source=False):
        """Flat `[N, n]` to `[B, heads, T, n / heads]`, B being sources or targets."""
        sizes = 'sources' if over_source else 'batch', -1, heads, x.shape[1] // heads
        return tf.raw_ops.Transpose(x=self._reshaped(x, *sizes), perm=self.shared([0, 2, 1, 3]))

    def split_packed(self, x, heads, parts):
        """Flat `[N, parts * n]` to `parts` tensors `[B, heads, T, n / heads]`."""
        x = self._reshaped(x, 'batch', -1, parts, heads, x.shape[1] // (parts * heads))
        x = tf.raw_ops.Transpose(x=x, perm=self.shared([2, 0, 3, 1, 4]))
        return tf.raw_ops.Unpack(value=x, num=parts, axis=0)

    def _reshaped(self, x, *sizes):
        x = tf.raw_ops.Reshape(tensor=x, shape=self._shape(*sizes))
        x.set_shape([None, None, *sizes[2:]])  # the graph that made the shape may not be this one
        return x

    def found(self, queries, keys, values, bias):
        """What attention finds, flat float32."""
        scores = tf.raw_ops.BatchMatMulV2(x=queries, y=keys, adj_y=True) + bias
        weights = tf.raw_ops.Softmax(logits=tf.cast(scores, tf.float32))
        found = tf.raw_ops.BatchMatMulV2(x=tf.cast(weights, values.dtype), y=values)
        found = tf.raw_ops.Transpose(x=found, perm=self.shared([0, 2, 1, 3]))
        size = values.shape[1] * values.shape[3]
        return tf.cast(tf.raw_ops.Reshape(tensor=found, shape=self.shared([-1, size])), tf.float32)


def _sizes_of(sizes, at):
    """Names among sizes replaced by what they stand for."""
    known = {'batch': at.rows.batch, 'sources': tf.shape(at.memory.mask)[0]}
    return [known.get(size, size) for size in sizes]


class _State:
    """Flat rows, in one piece or in two, whichever the last part left behind."""

    def __init__(self, rows):
        self.held = rows

    def replace(self, rows):
        self.held = rows

    def whole(self):
        if isinstance(self.held, tuple):
            self.held = tf.concat(self.held, axis=1)
        return self.held

    def parts(self, first):
        """Two pieces, the first with `first` channels."""
        if not isinstance(self.held, tuple) or self.held[0].shape[1] != first:
            whole = self.whole()
            self.held = tuple(tf.split(whole, [first, whole.shape[1] - first], axis=1))
        return self.held

    def steps(self):
        """Even and odd steps."""
        whole = self.whole()
        return tuple(tf.split(tf.reshape(whole, [-1, 2 * whole.shape[1]]), 2, axis=1))

    def join_steps(self, parts):
        self.held = tf.reshape(tf.concat(parts, axis=1), [-1, parts[0].shape[1]])


def _linear(x, pair):
    return tf.raw_ops.BiasAdd(value=tf.raw_ops.MatMul(a=x, b=pair[0]), bias=pair[1])


def _pairs(x, rows, count, heads):
    """Flat `[B * S, count * 2 * n]` to `count` tensors `[2, B, heads, S, n / heads]`."""
    size = x.shape[1] // (count * 2 * heads)
    x = tf.reshape(x, [rows.batch, rows.time, count, 2, heads, size])
    return tf.unstack(tf.transpose(x, [2, 3, 0, 4, 1, 5]), num=count)
