"""Search: what greedy search, sampling and beam search do with a model, under a prefix and a shortlist where given."""

import tensorflow as tf

from sequencing import noise
from sequencing.dynamic_decode import dynamic_decode
from sequencing.feedback import BeamFeedBack, GreedyFeedBack, SampleFeedBack

MODES = ('beam', 'greedy', 'sample', 'mbr')  # the default first


def rows_per_source(options):
    """How many sentences a source is to the batch size: many samples make batches of fewer sources."""
    return {'sample': options.nbest, 'mbr': options.ntr}.get(options.decode, 1)


def search(model, src_ids, src_mask, limits, options, prefix=None, shortlist=None, seed=None):
    """Decodes a batch.

    Args:
      model: has `start`, `step`, `reorder`, `output_rows`, `bos_id` and `eos_id`, as `Seq2Seq` has.
      src_ids, src_mask: `[B, S]`.
      limits: `[B]` int32, longest output of each sentence, EOS not counted.
      options: `DecodeOptions`.
      prefix: `[B, P]` int32, what each output begins with, -1 after its end; None for nothing.
      shortlist: `AllowedTokens`, which holds EOS and the prefix of every sentence; None allows all. Scores are then
        those of the model whose softmax has only the allowed tokens of the sentence.
      seed: scalar int32 in place of the seed in `options`.
    Returns:
      `Hypotheses`, of which the first `options.nbest` are meant; for mbr, all samples that `reranking` compares.
    """
    walked = model if shortlist is None else Shortlisted(model, shortlist)
    if prefix is not None and shortlist is not None:
        prefix = tf.where(prefix < 0, -1, walked.places(prefix))
    seed = options.seed if seed is None else seed
    feedback = search_feedback(walked, src_ids, src_mask, limits, options, seed, prefix)
    memory, state = walked.start(src_ids, src_mask, feedback.width, feedback.max_steps)
    found = dynamic_decode(walked, feedback, state, memory)
    return found if shortlist is None else found._replace(ids=tf.gather(walked.tokens, found.ids))


class Shortlisted:
    """A model for whose search tokens are numbered by their place among those that a shortlist allows in the batch."""

    def __init__(self, model, shortlist):
        self.model, self.tokens, self.allowed = model, shortlist.tokens, shortlist.allowed
        self.rows = model.output_rows(shortlist.tokens)
        self.bos_id, self.eos_id = tf.unstack(self.places(tf.constant([model.bos_id, model.eos_id])))

    def places(self, ids):
        """Where ids of any shape stand in the shortlist."""
        return tf.reshape(tf.searchsorted(self.tokens, tf.reshape(ids, [-1])), tf.shape(ids))

    def start(self, *batch):
        """As `Seq2Seq.start`; memory holds what each sentence is allowed, too."""
        memory, state = self.model.start(*batch)
        return (memory, self.allowed), state

    def step(self, ids, state, memory, time):
        memory, allowed = memory
        return self.model.step(tf.gather(self.tokens, ids), state, memory, time, self.rows, allowed)

    def reorder(self, state, parents):
        return self.model.reorder(state, parents)


def search_feedback(model, src_ids, src_mask, limits, options, seed, prefix=None):
    """The feedback of a decoding mode; see `search`."""
    common = {'bos_id': model.bos_id, 'eos_id': model.eos_id, 'limits': limits, 'attention': options.attention,
              'alpha': options.length_penalty, 'prefix': prefix}  # fmt: skip
    if options.decode == 'greedy':
        return GreedyFeedBack(**common)
    if options.decode in ('sample', 'mbr'):
        return SampleFeedBack(
            **common, seed=seed, source=noise.source_hash(src_ids, src_mask), width=rows_per_source(options),
            temperature=options.temperature, top_k=options.top_k, top_p=options.top_p,
        )  # fmt: skip
    return BeamFeedBack(**common, beam_size=options.beam_size, nbest=min(options.nbest, options.beam_size))
