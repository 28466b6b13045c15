"""Recurrent encoder, and recurrent decoder with attention. Gates are ordered as in `sequencing.recurrent`."""

import numpy as np

from sequencing_np.layers import Linear, linear, sigmoid, softmax


class LSTM:
    """Long short-term memory; state: output and memory, each `[R, H]`."""

    fields = 2

    def __init__(self, weights):
        """Takes one product for input and state together."""
        kernel, recurrent = weights['kernel'], weights['recurrent_kernel']
        self.units, self.inputs = len(recurrent), Linear(kernel, weights['bias'])
        self.recurrent = recurrent
        self.both = Linear(np.concatenate([kernel, recurrent]), weights['bias'])

    def step(self, x, state):
        """Reads rows `[R, D]`: the new state."""
        return self.update(self.both(np.concatenate([x, state[0]], axis=1)), state)

    def read(self, projected, state):
        """As `step`, of rows that `inputs` has projected."""
        return self.update(projected + state[0] @ self.recurrent, state)

    def update(self, pre, state):
        units = self.units
        gates = sigmoid(pre)  # the candidate's part is not one, and costs less than four pieces would
        memory = gates[:, units : 2 * units] * state[1] + gates[:, :units] * np.tanh(pre[:, 2 * units : 3 * units])
        return gates[:, 3 * units :] * np.tanh(memory), memory


class PlainRNN(LSTM):
    """output' = tanh(...); state: output alone."""

    fields = 1

    def update(self, pre, state):
        return (np.tanh(pre),)


class GRU(LSTM):
    """Gated recurrent unit in the form of cuDNN; state: output alone."""

    fields = 1

    def __init__(self, weights):
        super().__init__(weights)
        self.both, self.candidate_bias = None, weights['candidate_bias']

    def step(self, x, state):
        return self.read(self.inputs(x), state)

    def read(self, projected, state):
        cut, hidden = 2 * self.units, state[0] @ self.recurrent
        gates = sigmoid(projected[:, :cut] + hidden[:, :cut])
        reset, update = gates[:, : self.units], gates[:, self.units :]
        candidate = np.tanh(projected[:, cut:] + reset * (hidden[:, cut:] + self.candidate_bias))
        return (candidate + update * (state[0] - candidate),)


CELLS = {'lstm': LSTM, 'gru': GRU, 'rnn': PlainRNN}


def read_sequence(cell, x, mask, reverse=False):
    """Reads whole sequences.

    Args:
      cell: of `CELLS`; x: flat `[B * T, D]`; mask: `[B, T]` bool.
      reverse: from the last real step to the first.
    Returns:
      outputs `[B, T, H]`, zero at padding, where the state stays as it is.
    """
    batch, time = mask.shape
    projected = cell.inputs(x).reshape(batch, time, -1).swapaxes(0, 1).copy()
    outputs = np.zeros_like(projected, shape=(batch, time, cell.units))
    state = tuple(np.zeros_like(projected, shape=(batch, cell.units)) for _ in range(cell.fields))
    full = bool(mask.all())
    for t in reversed(range(time)) if reverse else range(time):
        new = cell.read(projected[t], state)
        if full:
            state, outputs[:, t] = new, new[0]
        else:
            real = mask[:, t, np.newaxis]
            state = tuple(np.where(real, n, o) for n, o in zip(new, state))
            outputs[:, t] = np.where(real, new[0], np.float32(0))
    return outputs


class RNNEncoder:
    """Stacked recurrent layers, read both ways or forwards only."""

    def __init__(self, weights, part, embedding_size):
        cell = CELLS[part.cell]
        ways = 2 if getattr(part, 'bidirectional', True) else 1
        self.layers = [[cell(layer.below(str(way))) for way in range(ways)] for layer in weights.listed('layers')]

    def __call__(self, embedded, mask):
        """Flat `[B * S, E]` and mask `[B, S]` to flat outputs, zero on padding."""
        x = embedded
        for ways in self.layers:
            read = [read_sequence(cell, x, mask, reverse=i == 1) for i, cell in enumerate(ways)]
            x = np.concatenate(read, axis=2).reshape(len(x), -1)
        return x


class RNNDecoder:
    """A recurrent decoder that feeds what it attended to back into its next step; see `sequencing.rnn_decoder`."""

    def __init__(self, weights, part, embedding_size):
        self.xp, cell = weights.xp, CELLS[part.cell]
        self.cells = [cell(layer) for layer in weights.listed('layers')]
        self.bridge = linear(weights.below('bridge/projection'))
        self.readout = linear(weights.below('readout'))
        self.keys = linear(weights.below('attention/key_projection'))
        self.query = weights['attention/query_kernel'] if part.attention != 'dot' else None
        self.energy = weights['attention/energy'] if part.attention in ('additive', 'via') else None

    def start(self, outputs, mask, width):
        """The walk of `width` hypotheses a sentence, from encoder outputs, flat `[B * S, D]`, and their mask."""
        return RNNWalk(self, outputs, mask, width)


class RNNWalk:
    """Hypotheses on their way: `[n * W]` rows, those of a sentence side by side.

    Every decoder has such a walk, with `step`, `reorder` and `keep`.
    """

    def __init__(self, decoder, outputs, mask, width):
        batch, time = mask.shape
        self.decoder, self.width = decoder, width
        self.values = outputs.reshape(batch, time, -1)
        self.keys = decoder.keys(outputs).reshape(batch, time, -1)
        self.hidden = None if mask.all() else ~mask[:, np.newaxis]  # [n, 1, S]
        mean = self.values.sum(axis=1) / np.maximum(mask.sum(axis=1, keepdims=True), 1).astype(np.float32)
        start = np.repeat(np.tanh(decoder.bridge(mean)), width, axis=0)
        fields = decoder.cells[0].fields
        parts = np.split(start, fields * len(decoder.cells), axis=1)
        self.states = [tuple(parts[i : i + fields]) for i in range(0, len(parts), fields)]
        self.context = np.zeros_like(outputs, shape=(batch * width, outputs.shape[1]))

    def step(self, embedded, time):
        """Reads one token of each row, `[R, E]`: features `[R, F]`."""
        decoder = self.decoder
        state = decoder.cells[0].step(np.concatenate([embedded, self.context], axis=1), self.states[0])
        states, top = [state], state[0]
        self.context = context = self._attend(top)
        for i, (cell, old) in enumerate(zip(decoder.cells[1:], self.states[1:])):
            state = cell.step(np.concatenate([top, context], axis=1), old)
            states.append(state)
            top = state[0] + top if i else state[0]
        self.states = states
        return np.tanh(decoder.readout(np.concatenate([embedded, top, context], axis=1)))

    def _attend(self, queries):
        if self.decoder.query is not None:
            queries = queries @ self.decoder.query
        queries = queries.reshape(len(self.keys), self.width, -1)
        if self.decoder.energy is None:
            energies = queries @ self.keys.swapaxes(1, 2)
        else:
            energies = np.tanh(self.keys[:, np.newaxis] + queries[:, :, np.newaxis]) @ self.decoder.energy
        if self.hidden is not None:
            energies = np.where(self.hidden, -np.inf, energies)
        return (softmax(energies) @ self.values).reshape(-1, self.values.shape[2])

    def reorder(self, parents):
        """Puts hypothesis `parents[r]` in row r; `parents` is an array of NumPy."""
        parents = self.decoder.xp.asarray(parents)
        self.states = [tuple(field[parents] for field in state) for state in self.states]
        self.context = self.context[parents]

    def keep(self, sentences, rows):
        """Goes on with some sentences, by their places, and with their rows; both are arrays of NumPy."""
        sentences = self.decoder.xp.asarray(sentences)
        self.keys, self.values = self.keys[sentences], self.values[sentences]
        self.hidden = None if self.hidden is None else self.hidden[sentences]
        self.reorder(rows)
