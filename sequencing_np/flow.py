"""The prior of FlowSeq: a multi-level flow, or a Gaussian; see `flow_layers`.

    forward: latent z -> noise, the direction of densities        inverse: noise -> latent z

Once, when the model is loaded, ActNorms, linear maps and changes of channel order between two couplings become one
matrix product, and the maps of all couplings to keys and values of the source become one.
"""

from typing import NamedTuple

import numpy as np

from sequencing_np.arrays import to_host
from sequencing_np.blocks import Bidirectional, DecoderBlock, GlobalAttention, SourceAttentionBlock
from sequencing_np.layers import Linear, elu, split_heads, weight_norm_linear
from sequencing_np.transforms import TRANSFORMS


class FlowMemory(NamedTuple):
    """The source as couplings look at it."""

    projected: list  # of keys and values [2, B, heads, S, d], one for each conditioner, by its place
    penalty: np.ndarray  # [B, 1, 1, S], or None


class Conditioner:
    """What networks inside couplings share. `place` is that of its keys and values in a `FlowMemory`."""

    def __init__(self, weights, place):
        self.place, self.linear = place, weight_norm_linear(weights.below('linear'))

    def __call__(self, x, rows, memory):
        """Flat rows, zero at padding, to the parameters of a transform."""
        return self.linear(self.features(x, rows, memory.projected[self.place], memory.penalty))


class SelfAttentionConditioner(Conditioner):
    """Adds positions, or lets them attend to the rows, then one Transformer decoder layer."""

    def __init__(self, weights, place, part):
        super().__init__(weights, place)
        self.heads, self.layer = part.heads, DecoderBlock(weights.below('layer'), part.heads)
        self.source = self.layer.source_attention.source
        if 'source_linear/kernel' in weights:
            self.source = Linear(weights['source_linear/kernel'] @ self.source.kernel, self.source.bias)
        self.position_attention = None
        if 'position_attention/query/kernel' in weights:
            self.position_attention = SourceAttentionBlock(weights.below('position_attention'), part.heads)

    def features(self, x, rows, memory, penalty):
        signal = rows.positions(x.shape[1])
        if self.position_attention is None:
            x = x + signal
        else:
            x = self.position_attention(signal, self.position_attention.keys_and_values(x, rows.batch), rows.penalty)
        return self.layer(x, rows, memory, penalty)


class AttendingConditioner(Conditioner):
    """Reads the rows in some way, attends to the source with what came out, and joins that to the rows."""

    heads = 1

    def __init__(self, weights, place, part):
        super().__init__(weights, place)
        self.attention = GlobalAttention(weights.below('attention'))
        self.source = self.attention.source

    def features(self, x, rows, memory, penalty):
        return np.concatenate([x, self.attention(self.read(x, rows), memory, penalty)], axis=1)


class RecurrentConditioner(AttendingConditioner):
    def __init__(self, weights, place, part):
        super().__init__(weights, place, part)
        self.read = Bidirectional(weights.below('recurrent'), part.cell)


class ConvConditioner(AttendingConditioner):
    def __init__(self, weights, place, part):
        super().__init__(weights, place, part)
        self.width, self.unmasked_first = part.kernel_size, part.unmasked_first
        self.first, self.second = [weight_norm_linear(weights.below(name)) for name in ('first', 'second')]

    def read(self, x, rows):
        hidden = elu(self.first(self._windows(x, rows)))
        if not self.unmasked_first:
            hidden = rows.only_real(hidden)
        return rows.only_real(elu(self.second(self._windows(hidden, rows))))

    def _windows(self, x, rows):
        reach = self.width // 2
        padded = np.pad(x.reshape(rows.batch, rows.time, -1), ((0, 0), (reach, reach), (0, 0)))
        windows = np.concatenate([padded[:, i : i + rows.time] for i in range(self.width)], axis=2)
        return windows.reshape(len(x), -1)


CONDITIONERS = {
    'self_attention': SelfAttentionConditioner,
    'recurrent': RecurrentConditioner,
    'conv': ConvConditioner,
}


class AffineMap:
    """`y = x @ matrix + shift` over channels, put together layer by layer in float64."""

    def __init__(self, size):
        self.matrix, self.inverse, self.shift, self.log_det = np.eye(size), np.eye(size), np.zeros(size), 0.0

    def reorder(self, order):
        """Then takes channel `order[i]` for channel i."""
        self.matrix, self.inverse, self.shift = self.matrix[:, order], self.inverse[order], self.shift[order]

    def scale(self, weights):
        """Then scales and shifts as an ActNorm."""
        log_scale = host(weights['log_scale'])
        scale = np.exp(log_scale)
        self.matrix, self.inverse = self.matrix * scale, self.inverse / scale[:, np.newaxis]
        self.shift = self.shift * scale + host(weights['shift'])
        self.log_det += log_scale.sum()

    def multiply(self, weights, kind):
        """Then multiplies heads of at most 32 channels by one matrix; see `flow_layers.invertible_linear`."""
        head = _head_matrix(weights)
        heads = np.eye(len(self.shift) // len(head))
        wide, inverse = [
            np.kron(heads, matrix) if kind == 'a' else np.kron(matrix, heads)
            for matrix in (head.T, np.linalg.inv(head.T))
        ]
        self.matrix, self.shift = self.matrix @ wide, self.shift @ wide
        self.inverse = inverse @ self.inverse
        self.log_det += len(heads) * np.linalg.slogdet(head)[1]

    def finished(self, xp):
        """Its two directions as `Linear`, or None where it changes nothing."""
        if not self.shift.any() and np.array_equal(self.matrix, np.eye(len(self.shift))):
            return None
        both = (self.matrix, self.shift), (self.inverse, -self.shift @ self.inverse)
        self.directions = [Linear(*[xp.asarray(x, dtype=np.float32) for x in pair]) for pair in both]
        return self

    def run(self, x, rows, memory, forwards):
        """Flat rows to flat rows, and the log-det `[B]`."""
        sign = 1.0 if forwards else -1.0
        return self.directions[0 if forwards else 1](x), rows.counts * np.float32(sign * self.log_det)


def _head_matrix(weights):
    """The matrix of an invertible linear map, from its LU factors where it is kept as them."""
    if 'matrix' in weights:
        return host(weights['matrix'])
    triangles = host(weights['triangles'])
    lower = np.tril(triangles, -1) + np.eye(len(triangles))
    upper = np.triu(triangles, 1) + np.diag(host(weights['signs']) * np.exp(host(weights['log_diagonal'])))
    return host(weights['permutation']) @ lower @ upper


def host(x):
    """An array of either module as float64 of NumPy."""
    return to_host(x).astype(np.float64)


class Coupling:
    """Changes one part of the latent, with parameters that a network reads off the other part.

    Args:
      conditioner: `Conditioner`; transform: of `TRANSFORMS`.
      order: 'up' changes the second part, 'down' the first.
      sizes: channels of (what conditions, what changes); None for a split into even and odd steps.
    """

    def __init__(self, conditioner, transform, order, sizes=None):
        self.conditioner, self.transform, self.sizes, self.up = conditioner, transform, sizes, order == 'up'

    def run(self, x, rows, memory, forwards):
        """Flat rows to flat rows, and the log-det `[B]`."""
        if self.sizes is None:
            parts, places = np.moveaxis(x.reshape(-1, 2, x.shape[1]), 1, 0), (rows.even(), rows.odd())
        else:
            cut = self.sizes[0 if self.up else 1]
            parts, places = (x[:, :cut], x[:, cut:]), (rows, rows)
        which = 1 if self.up else 0  # what changes
        at, changed_at = places[1 - which], places[which]
        parameters = self.conditioner(at.only_real(parts[1 - which]), at, memory)
        real = None if rows.full else self._changing(at, changed_at)
        if real is not None:
            parameters = np.where(real, parameters, np.float32(0))
        new, log_slope = (self.transform.forward if forwards else self.transform.inverse)(parts[which], parameters)
        if real is not None:
            new = np.where(real, new, parts[which])
            log_slope = log_slope if log_slope is None else np.where(real, log_slope, np.float32(0))
        joined = (parts[0], new) if self.up else (new, parts[1])
        if self.sizes is None:
            y = np.stack(joined, axis=1).reshape(x.shape)
        else:
            y = np.concatenate(joined, axis=1)
        return y, 0.0 if log_slope is None else log_slope.reshape(rows.batch, -1).sum(axis=1)

    @staticmethod
    def _changing(at, changed_at):
        """The rows that change, `[N, 1]` bool: not those of a sentence with nothing real in what conditions."""
        return (changed_at.mask & at.mask.any(axis=1, keepdims=True)).reshape(-1, 1)


class Prior:
    """What both priors share: keys and values of the source for all conditioners, in one product."""

    def __init__(self, conditioners):
        self.conditioners = conditioners
        self.source = Linear(*[np.concatenate([getattr(net.source, name) for net in conditioners], axis=-1)
                               for name in ('kernel', 'bias')])  # fmt: skip

    def prepare(self, states, rows):
        """Flat source states and their `Rows` to a `FlowMemory`."""
        packed = self.source(states)
        ends = np.cumsum([net.source.kernel.shape[1] for net in self.conditioners]).tolist()
        projected = [
            split_heads(packed[:, start:end].copy(), rows.batch, net.heads, 2)
            for net, start, end in zip(self.conditioners, [0, *ends], ends)
        ]
        return FlowMemory(projected, rows.penalty)


class FlowPrior(Prior):
    """The flow of `flow_layers.build.build_flow`.

    Args:
      weights: of the prior; part: its configuration; depth: channels of a latent.
    """

    def __init__(self, weights, part, depth):
        self.part, self.xp = part, weights.xp
        self.sizes = [depth]
        for factor in part.factors:
            self.sizes.append(2 * (self.sizes[-1] - self.sizes[-1] // factor))
        self._made = []  # conditioners so far
        self.levels = [self._level(i, weights.below(f'layers/{i}')) for i in range(len(self.sizes))]
        super().__init__(self._made)

    def _level(self, i, weights):
        """Couplings with the affine maps between them, forwards."""
        part, size, last = self.part, self.sizes[i], i == len(self.sizes) - 1
        program, layers = _Program(self, size), weights.listed('layers')
        if part.coupling == 'self_attention' and part.positions == 'attend':
            norm, up, down = layers.pop(0).listed('layers')
            program.between.scale(norm)
            program.couple(up, 'up')
            program.couple(down, 'down')
        for _ in range(part.steps[i]):
            parts = layers.pop(0).listed('layers')
            for kind, (norm, matrix, unit) in zip('ab', (parts[:3], parts[3:])):
                program.between.scale(norm)
                program.between.multiply(matrix, kind)
                program.unit(unit.listed('layers'), in_time=not last)
        if not last:
            program.couple(layers.pop(0), 'up', factor=part.factors[i])
        return program.finished()

    def conditioner(self, weights):
        self._made.append(CONDITIONERS[self.part.coupling](weights, len(self._made), self.part))
        return self._made[-1]

    def forward(self, x, rows, memory, level=0):
        """Flat latents, zero at padding, to noise, and the log-det `[B]`."""
        x, log_det = self._run(self.levels[level], x, rows, memory, True)
        if level == len(self.levels) - 1:
            return rows.only_real(x), log_det
        x, deeper = self._deeper(self.forward, x, rows, memory, level)
        return rows.only_real(x), log_det + deeper

    def inverse(self, x, rows, memory, level=0):
        """Flat noise, zero at padding, to latents, and the log-det of that direction `[B]`."""
        deeper = 0.0
        if level < len(self.levels) - 1:
            x, deeper = self._deeper(self.inverse, x, rows, memory, level)
        x, log_det = self._run(self.levels[level][::-1], x, rows, memory, False)
        return rows.only_real(x), log_det + deeper

    def _deeper(self, direction, x, rows, memory, level):
        """Runs the next level on the channels that are kept, two neighbouring steps as one."""
        kept = self.sizes[level + 1] // 2
        inner, log_det = direction(x[:, :kept].reshape(-1, 2 * kept), rows.paired(), memory,
                                   level + 1)  # fmt: skip
        return np.concatenate([inner.reshape(-1, kept), x[:, kept:]], axis=1), log_det

    @staticmethod
    def _run(parts, x, rows, memory, forwards):
        total = np.zeros_like(x, shape=rows.batch)
        for part in parts:
            x, log_det = part.run(x, rows, memory, forwards)
            total += log_det
        return x, total


class _Program:
    """Collects the parts of a level of `size` channels."""

    def __init__(self, prior, size):
        self.prior, self.size, self.parts, self.between = prior, size, [], AffineMap(size)

    def couple(self, weights, order, factor=2, interleaved=False):
        """Then couples channels: by halves (or by parts), or the even with the odd ones."""
        changed = self.size // factor
        if interleaved:  # the even ones first, and back again
            halves = np.concatenate([np.arange(0, self.size, 2), np.arange(1, self.size, 2)])
            self.between.reorder(halves)
        self._add(weights, order, (self.size - changed, changed))
        if interleaved:
            self.between.reorder(np.argsort(halves))

    def unit(self, layers, in_time):
        """Couplings by halves, by even and odd channels, and by even and odd steps, ActNorm between."""
        for order in ('up', 'down'):
            self.couple(layers.pop(0), order)
        self.between.scale(layers.pop(0))
        for order in ('up', 'down'):
            self.couple(layers.pop(0), order, interleaved=True)
        if in_time:
            self.between.scale(layers.pop(0))
            for order in ('up', 'down'):
                self._add(layers.pop(0), order, None)

    def _add(self, weights, order, sizes):
        self.finished()
        net = self.prior.conditioner(weights.below('conditioner'))
        self.parts.append(Coupling(net, TRANSFORMS[self.prior.part.transform], order, sizes))

    def finished(self):
        """The parts, the last affine map included."""
        if (affine := self.between.finished(self.prior.xp)) is not None:
            self.parts.append(affine)
        self.between = AffineMap(self.size)
        return self.parts


class GaussianPrior(Prior):
    """Shifts and scales every element by what source and position say; see `flow_layers.gaussian`."""

    def __init__(self, weights, part, depth):
        self.depth = depth
        net = SelfAttentionConditioner(weights.below('layers/0/conditioner'), 0, part)
        super().__init__([net])

    def _ends(self, x, rows, memory):
        ends = rows.only_real(self.conditioners[0](np.zeros_like(x), rows, memory))
        mean, log_deviation = ends[:, : self.depth], ends[:, self.depth :]
        return mean, log_deviation, rows.sums(log_deviation)

    def forward(self, x, rows, memory):
        mean, log_deviation, log_det = self._ends(x, rows, memory)
        return (x - mean) * np.exp(-log_deviation), -log_det

    def inverse(self, x, rows, memory):
        mean, log_deviation, log_det = self._ends(x, rows, memory)
        return x * np.exp(log_deviation) + mean, log_det


PRIORS = {'flow': FlowPrior, 'gaussian': GaussianPrior}
