"""FlowSeq by the published formulas, in NumPy: the answer that imported models are compared with.

It reads the arrays of a state dict as they are (`[out, in]`, two biases a recurrent layer, ...) and shares nothing with
what it tests. One sentence at a time and no padding, so that no mask could be wrong in the same way; the one place
where padding matters (the unmasked first convolution) is told how long the batch is. All in float64.
Sections are those of the specification, `$SEQUENCING_SHARED/design/flowseq_facts.md`.
"""

import numpy as np

NLSQ_LIMIT = np.log(8 * np.sqrt(3) / 9 - 0.05)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def elu(x):
    return np.where(x > 0, x, np.exp(np.minimum(x, 0)) - 1)


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def positions(count, size):
    """Rows 1, 2, ... of the table of positions, `[count, size]` (section 3)."""
    angles = np.arange(1, count + 1)[:, np.newaxis] * 10000.0 ** (-np.arange(size // 2) / (size // 2 - 1))
    return np.concatenate([np.sin(angles), np.cos(angles), np.zeros([count, size % 2])], axis=1)


def recurrent_step(cell, from_x, from_h, h, c):
    """One step by the formulas of PyTorch's documentation, given `W x + b` of the input and of the state."""
    if cell == 'RNN':
        return np.tanh(from_x + from_h), c
    if cell == 'GRU':
        (xr, xz, xn), (hr, hz, hn) = np.split(from_x, 3), np.split(from_h, 3)
        z = sigmoid(xz + hz)
        return (1 - z) * np.tanh(xn + sigmoid(xr + hr) * hn) + z * h, c
    i, f, g, o = np.split(from_x + from_h, 4)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


class Layers:
    """Layers by their names in a state dict (section 3).

    Args:
      arrays: dict of name to array.
    """

    def __init__(self, arrays):
        self.arrays = arrays

    def linear(self, prefix, x):
        return x @ self.arrays[f'{prefix}weight'].T + self.arrays[f'{prefix}bias']

    def normalised(self, prefix):
        """The weight of a weight-normalised layer."""
        v, g = self.arrays[f'{prefix}weight_v'], self.arrays[f'{prefix}weight_g']
        return g * v / np.sqrt((v**2).sum(axis=tuple(range(1, v.ndim)), keepdims=True))

    def weight_norm(self, prefix, x):
        return x @ self.normalised(prefix).T + self.arrays[f'{prefix}bias']

    def convolution(self, prefix, x):
        """Over time, zeros outside, as long as `x` `[T, n]`."""
        kernel = self.normalised(prefix)  # [out, in, width]
        reach = kernel.shape[2] // 2
        out = np.tile(self.arrays[f'{prefix}bias'], [len(x), 1])
        for t in range(len(x)):
            for k in range(kernel.shape[2]):
                if 0 <= t + k - reach < len(x):
                    out[t] += kernel[:, :, k] @ x[t + k - reach]
        return out

    def layer_norm(self, prefix, x):
        x = (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)
        return x * self.arrays[f'{prefix}layer_norm.weight'] + self.arrays[f'{prefix}layer_norm.bias']

    def attention(self, prefix, query, source, heads):
        weights, biases = [np.split(self.arrays[f'{prefix}in_proj_{kind}'], 3) for kind in ('weight', 'bias')]
        q, k, v = [x @ w.T + b for x, w, b in zip((query, source, source), weights, biases)]
        size = query.shape[1] // heads
        found = []
        for j in range(heads):
            columns = slice(j * size, (j + 1) * size)
            found.append(softmax(q[:, columns] @ k[:, columns].T / np.sqrt(size)) @ v[:, columns])
        return self.layer_norm(prefix, np.concatenate(found, axis=1) + query)

    def transformer(self, prefix, x, source, heads):
        """One layer; of an encoder where `source` is None."""
        x = self.attention(f'{prefix}slf_attn.', x, x, heads)
        if source is not None:
            x = self.attention(f'{prefix}enc_attn.', x, source, heads)
        hidden = np.maximum(self.linear(f'{prefix}pos_ffn.linear1.', x), 0)
        return self.layer_norm(f'{prefix}pos_ffn.', x + self.linear(f'{prefix}pos_ffn.linear2.', hidden))

    def global_attention(self, prefix, query, source):
        keys, values = np.split(self.linear(f'{prefix}key_proj.', source), 2, axis=1)
        queries = self.linear(f'{prefix}query_proj.', query)
        return self.linear(f'{prefix}fc.', softmax(queries @ keys.T) @ values)

    def recurrent(self, prefix, x, cell='LSTM', layers=1, two_ways=True):
        """`[T, n]` to the states of both directions side by side."""
        for i in range(layers):
            ways = []
            for suffix in ('', '_reverse') if two_ways else ('',):
                ending, order = f'_l{i}{suffix}', range(len(x))[:: -1 if suffix else 1]
                w_x, w_h, b_x, b_h = [
                    self.arrays[f'{prefix}{name}{ending}'] for name in ('weight_ih', 'weight_hh', 'bias_ih', 'bias_hh')
                ]
                h = c = np.zeros(w_h.shape[1])
                states = np.zeros([len(x), len(h)])
                for t in order:
                    h, c = recurrent_step(cell, w_x @ x[t] + b_x, w_h @ h + b_h, h, c)
                    states[t] = h
                ways.append(states)
            x = np.concatenate(ways, axis=1)
        return x


class Flow(Layers):
    """The prior flow in the density direction, latent to noise (section 7).

    Args:
      arrays: dict of name to array; config: the `flow` of a configuration; size: width of latents and sources.
    """

    def __init__(self, arrays, config, size):
        super().__init__(arrays)
        self.config, self.size = config, size

    def __call__(self, z, source, room):
        """Latents `[T, D]` of one sentence to noise and log-det; `room` is T of the batch, padding included."""
        return self.from_level(0, z, source, room)

    def from_level(self, i, x, source, room):
        factors = self.config['factors']
        last = i == len(factors)
        x, log_det = self.block(f'prior.flow.blocks.{i}.', i, x, source, room, last)
        if last:
            return x, log_det
        keep = x.shape[1] - x.shape[1] // factors[i]
        squeezed = x[:, :keep].reshape(len(x) // 2, 2 * keep)
        inner, more = self.from_level(i + 1, squeezed, source, room // 2)
        return np.concatenate([inner.reshape(len(x), keep), x[:, keep:]], axis=1), log_det + more

    def block(self, prefix, i, x, source, room, last):
        total = 0.0

        def actnorm(name):
            nonlocal x, total
            log_scale = self.arrays[f'{prefix}{name}.log_scale']
            x, total = x * np.exp(log_scale) + self.arrays[f'{prefix}{name}.bias'], total + len(x) * log_scale.sum()

        def multi_head(name, kind):
            nonlocal x, total
            matrix = self.arrays[f'{prefix}{name}.weight']
            n, steps = len(matrix), len(x)
            heads = x.shape[1] // n
            if kind == 'A':
                x = (x.reshape(steps, heads, n) @ matrix.T).reshape(steps, -1)
            else:
                x = (matrix @ x.reshape(steps, n, heads)).reshape(steps, -1)
            total += steps * heads * np.linalg.slogdet(matrix)[1]

        def couple(name, **split):
            nonlocal x, total
            x, log_det = self.coupling(f'{prefix}{name}.net.', x, source, room, **split)
            total += log_det

        if self.config['coupling_type'] == 'self_attn' and self.config.get('pos_enc') == 'attn':
            actnorm('pos_attn.actnorm')
            couple('pos_attn.coupling_up', attend=True)
            couple('pos_attn.coupling_down', up=False)
        for j in range(self.config['num_steps'][i]):
            for number, kind in (('1', 'A'), ('2', 'B')):
                unit = f'steps.{j}.unit{number}.'
                actnorm(f'steps.{j}.actnorm{number}')
                multi_head(f'steps.{j}.linear{number}', kind)
                couple(unit + 'coupling1_up')
                couple(unit + 'coupling1_down', up=False)
                actnorm(unit + 'actnorm1')
                couple(unit + 'coupling2_up', kind='skip')
                couple(unit + 'coupling2_down', kind='skip', up=False)
                if not last:
                    actnorm(unit + 'actnorm2')
                    couple(unit + 'coupling3_up', kind='time')
                    couple(unit + 'coupling3_down', kind='time', up=False)
        if not last:
            couple('prior', factor=self.config['factors'][i])
        return x, total

    def coupling(self, prefix, x, source, room, kind='contiguous', up=True, factor=2, attend=False):
        """Section 7.8: `up` conditions on the first part and changes the second."""
        if kind == 'contiguous':
            changed = x.shape[1] // factor
            first = np.arange(x.shape[1]) < (x.shape[1] - changed if up else changed)
        else:
            first = np.arange(len(x) if kind == 'time' else x.shape[1]) % 2 == 0
        parts = [first, ~first] if up else [~first, first]
        condition, changed = [(part,) if kind == 'time' else (slice(None), part) for part in parts]
        p = self.net(prefix, x[condition], source, room // 2 if kind == 'time' else room, attend)
        new = x.copy()
        new[changed], log_det = self.transform(x[changed], p)
        return new, log_det

    def net(self, prefix, x, source, room, attend):
        kind, end = self.config['coupling_type'], f'{prefix}linear.linear.'
        if kind == 'self_attn':
            signal = positions(*x.shape)
            if x.shape[1] != self.size:
                source = source @ self.arrays[f'{prefix}src_proj.weight'].T
            heads = self.config['heads']
            x = self.attention(f'{prefix}pos_attn.', signal, x, heads) if attend else x + signal
            return self.weight_norm(end, self.transformer(f'{prefix}transformer.', x, source, heads))
        if kind == 'rnn':
            read = self.recurrent(f'{prefix}rnn.', x, self.config.get('rnn_mode', 'LSTM'))
        else:
            wide = np.concatenate([x, np.zeros([room - len(x), x.shape[1]])])
            wide = elu(self.convolution(f'{prefix}conv1.conv.', wide))  # what it writes into padding stays
            read = elu(self.convolution(f'{prefix}conv2.conv.', wide))[: len(x)]
        found = self.global_attention(f'{prefix}attn.', read, source)
        return self.weight_norm(end, np.concatenate([x, found], axis=1))

    def transform(self, z, p):
        kind = self.config.get('transform', 'affine')
        if kind == 'additive':
            return z + p, 0.0
        if kind == 'affine':
            shift, scale = np.split(p, 2, axis=1)
            scale = sigmoid(scale + 2)
            return scale * z + shift, np.log(scale).sum()
        a, lb, c, ld, g = np.split(p, 5, axis=1)
        b, d = np.exp(0.4 * lb), np.exp(0.4 * ld)
        c = np.exp(NLSQ_LIMIT + 0.4 * lb - 0.4 * ld) * np.tanh(0.3 * c)
        q = d * z + g
        return b * z + a + c / (1 + q**2), np.log(b - 2 * c * d * q / (1 + q**2) ** 2).sum()


class PublishedFlowSeq(Layers):
    """Encoder, posterior, decoder and length predictor (sections 4 to 6 and 8), for one sentence.

    Args:
      arrays: dict of name to array; config: what `config.json` holds.
    """

    def __init__(self, arrays, config):
        super().__init__({name: np.asarray(array, np.float64) for name, array in arrays.items()})
        self.config = config
        self.flow = Flow(self.arrays, config['prior']['flow'], config['latent_dim'])

    def stack(self, prefix, part, x, source=None):
        for i in range(part['num_layers']):
            x = self.transformer(f'{prefix}layers.{i}.', x, source, part['heads'])
        return x

    def placed(self, x):
        return np.sqrt(x.shape[1]) * x + positions(*x.shape)

    def encode(self, ids):
        """`[S]` to states `[S, D]`, the last of which is the global vector."""
        part, x = self.config['encoder'], self.arrays['encoder.embed.weight'][ids]
        if part['type'] == 'transformer':
            return self.stack('encoder.core.', part, self.placed(x))
        x = self.recurrent('encoder.core.rnn.', x, part['rnn_mode'], part['num_layers'])
        return elu(self.linear('encoder.core.enc_proj.0.', x))

    def posterior(self, ids, source):
        """`[T]` to means and log-variances."""
        part, x = self.config['posterior'], self.arrays['posterior.tgt_embed.weight'][ids]
        if part['type'] == 'transformer':
            x = self.stack('posterior.core.', part, self.placed(x), source)
        else:
            two_ways = part.get('bidirectional', True)
            x = self.recurrent('posterior.core.rnn.', x, part.get('rnn_mode', 'LSTM'), part['num_layers'], two_ways)
            if part['type'] == 'shift_rnn':
                units = x.shape[1] // (2 if two_ways else 1)
                zeros = np.zeros([1, x.shape[1]])
                before, after = np.concatenate([zeros, x[:-1]]), np.concatenate([x[1:], zeros])
                x = np.concatenate([before[:, :units], after[:, units:]], axis=1)
            if part['use_attn']:
                x = np.concatenate([x, self.global_attention('posterior.core.attn.', x, source)], axis=1)
            x = elu(self.linear('posterior.core.ctx_proj.0.', x))
        return [self.weight_norm(f'posterior.core.{end}.linear.', x) for end in ('mu', 'logvar')]

    def logits(self, z, source):
        """Latents `[T, D]` to scores of all tokens."""
        part, x = self.config['decoder'], z
        if part['type'] == 'transformer':
            x = self.attention('decoder.pos_attn.', positions(*z.shape), z, part['heads'])
            x = self.stack('decoder.', part, x, source)
        else:
            if part['type'] == 'rnn':
                two_ways = part.get('bidirectional', True)
                x = self.recurrent('decoder.rnn.', z, part.get('rnn_mode', 'LSTM'), part['num_layers'], two_ways)
            x = np.concatenate([self.global_attention('decoder.attn.', x, source), x], axis=1)
            x = elu(self.linear('decoder.ctx_proj.0.', x))
        return self.linear('decoder.readout.', x)

    def length_log_probs(self, context, src_length, unit):
        """The global vector `[D]` to {target length: log-probability}; for the logistic {difference: ...}."""
        part, prefix = self.config['prior']['length_predictor'], 'prior._length_predictor.'
        differences = np.arange(-part['diff_range'], part['diff_range'] + 1)
        x = elu(self.linear(f'{prefix}ctx_proj.0.', context))
        if part['type'] == 'diff_softmax':
            logits = self.linear(f'{prefix}diff.', elu(self.linear(f'{prefix}ctx_proj.2.', x)))
            known = {src_length + d: logit for d, logit in zip(differences, logits) if (src_length + d) % unit == 0}
            total = np.logaddexp.reduce(list(known.values()))
            return {length: logit - total for length, logit in known.items() if length > 0}
        weights, means, log_scales = np.split(self.linear(f'{prefix}diff.', x), 3)
        found = {}
        for d in differences:
            ends = [sigmoid((d / part['diff_range'] + side - means) / np.exp(log_scales))
                    for side in (-0.5 / part['diff_range'], 0.5 / part['diff_range'])]  # fmt: skip
            if d == differences[0]:
                ends[0] = 0.0
            if d == differences[-1]:
                ends[1] = 1.0
            found[d] = np.log((softmax(weights) * (ends[1] - ends[0])).sum())
        return found
