"""Several autoregressive models that decide together, step by step."""

import math

import tensorflow as tf

from sequencing.search import MODES, rows_per_source, search


class Ensemble(tf.Module):
    """p(y[t] | y[<t], x) is the mean of what the models say: of probabilities, not of their logarithms.

    The mean of probabilities is a distribution as it is, so that scores need no further normalisation, and a model that
    is sure counts for more than several that are not.

    Args:
      models: `Seq2Seq`s with the same vocabularies.
    """

    decoding_modes = MODES
    rows_per_source = staticmethod(rows_per_source)

    def __init__(self, models, name='ensemble'):
        super().__init__(name=name)
        self.models = list(models)
        self.bos_id, self.eos_id = self.models[0].bos_id, self.models[0].eos_id

    def score(self, batch, options=None, seed=None, sources=None):
        """As `Seq2Seq.score`."""
        tokens = log_mean([model.score(batch, sources=sources)[1] for model in self.models])
        tokens = tf.where(batch.trg_mask, tokens, 0.0)
        return tf.reduce_sum(tokens, axis=1), tokens

    def start(self, src_ids, src_mask, width, max_steps):
        """As `Seq2Seq.start`; memory and state are tuples over the models."""
        return tuple(zip(*[model.start(src_ids, src_mask, width, max_steps) for model in self.models]))

    def output_rows(self, tokens):
        """As `Seq2Seq.output_rows`, a tuple over the models."""
        return tuple(model.output_rows(tokens) for model in self.models)

    def step(self, ids, state, memory, time, rows=None, allowed=None):
        """As `Seq2Seq.step`; attention is the mean of the models'."""
        rows = rows or [None] * len(self.models)
        steps = [model.step(ids, s, m, time, r, allowed) for model, s, m, r in zip(self.models, state, memory, rows)]
        logits, states, weights = zip(*steps)
        mean = log_mean([tf.nn.log_softmax(x) for x in logits])
        return mean, states, tf.add_n([tf.cast(w, tf.float32) for w in weights]) / len(weights)

    def reorder(self, state, parents):
        """As `Seq2Seq.reorder`."""
        return tuple(model.reorder(s, parents) for model, s in zip(self.models, state))

    def translate(self, *batch, **constraints):
        """See `search.search`."""
        return search(self, *batch, **constraints)


def log_mean(logs):
    """log of the mean of exp, over a list of tensors; -inf where all are."""
    return tf.reduce_logsumexp(tf.stack(logs), axis=0) - math.log(len(logs))
