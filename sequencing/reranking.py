"""Choosing among candidate translations by what lies outside the model that made them: `npd` and `mbr`.

    npd  noisy parallel decoding: another model scores each candidate (Gu et al., 2018)
    mbr  minimum Bayes risk: the candidate that agrees most with the others, each different text counted once
         (Kumar and Byrne, 2004)

Both work on text, so the models may have different vocabularies.
"""

import numpy as np
import tensorflow as tf

from sequencing.structures import Batch
from sequencing.training import BATCH_SIGNATURE

UTILITIES = ('chrf', 'bleu')


class Rescorer:
    """log p(target | source) of texts, by an autoregressive model.

    Args:
      translator: `Translator` of the model that scores.
      batch_tokens: pairs times their longest side that are scored together.
    """

    def __init__(self, translator, batch_tokens=4000):
        self.translator, self.batch_tokens = translator, batch_tokens
        self._score = tf.function(
            lambda batch: translator.model.score(batch)[0], input_signature=[BATCH_SIGNATURE], autograph=False
        )

    def __call__(self, sources, targets):
        """Scores pairs of lines.

        Returns:
          `[len(sources)]` float64, nats, EOS included; -inf for an empty target of a source that is not blank.
        """
        src_ids = self.translator.src_vocab.encode_lines(sources)
        trg_ids = self.translator.trg_vocab.encode_lines(targets)
        scores = np.full([len(sources)], -np.inf)
        waiting = [i for i in range(len(sources)) if len(src_ids[i]) and len(trg_ids[i])]
        waiting.sort(key=lambda i: max(len(src_ids[i]), len(trg_ids[i])))
        while waiting:
            longest = max(len(src_ids[waiting[-1]]), len(trg_ids[waiting[-1]])) + 1
            count = max(1, self.batch_tokens // longest)
            chosen, waiting = waiting[-count:], waiting[:-count]
            sides = [
                _padded([ids[i] for i in chosen], vocab)
                for ids, vocab in ((src_ids, self.translator.src_vocab), (trg_ids, self.translator.trg_vocab))
            ]
            batch = Batch(*sides[0], *sides[1], tf.constant(chosen, tf.int64))
            scores[chosen] = self._score(batch).numpy()
        return scores


def _padded(rows, vocab):
    """Lists of ids to ids and mask, EOS added."""
    lengths = np.array([len(row) + 1 for row in rows])
    ids = np.full([len(rows), lengths.max()], vocab.pad_id, np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        ids[i, len(row)] = vocab.eos_id
    return tf.constant(ids), tf.sequence_mask(lengths, lengths.max())


def utilities(texts, utility='chrf'):
    """How much each text agrees with the others, each different text counted once.

    Args:
      texts: candidate translations of one line.
      utility: 'chrf' or 'bleu', of sentences, by sacreBLEU.
    Returns:
      a dict of each different text to its mean utility over the other ones, 0 to 100; 100 where it is the only one.
    """
    from sacrebleu.metrics import BLEU, CHRF

    if utility not in UTILITIES:
        raise ValueError(f'utility is one of {", ".join(UTILITIES)}; got {utility!r}')
    metric = CHRF() if utility == 'chrf' else BLEU(effective_order=True)
    different = list(dict.fromkeys(texts))
    if len(different) == 1:
        return {different[0]: 100.0}
    return {
        text: float(np.mean([metric.sentence_score(text, [other]).score for other in different if other != text]))
        for text in different
    }


def choose_by_agreement(outputs, utility='chrf'):
    """mbr: the different outputs of one line, best first, with the mean utility as `rank_score`.

    Args:
      outputs: `translator.Output`s of one line; of equal texts the one with the highest score stays.
    """
    best = {}
    for output in sorted(outputs, key=lambda output: -output.score):
        best.setdefault(output.translation, output)
    agreement = utilities(list(best), utility)
    ranked = [output._replace(rank_score=agreement[text]) for text, output in best.items()]
    return sorted(ranked, key=lambda output: -output.rank_score)


def choose_by_rescoring(sources, results, rescorer, length_penalty=0.0):
    """npd: for each line, the different outputs by another model's log-probability, which becomes their `score`.

    Args:
      sources: list of lines.
      results: the outputs of each line, a list of lists of `translator.Output`.
      rescorer: `(sources, targets) -> [n]` log-probabilities in nats, such as `Rescorer`.
      length_penalty: A in `rank_score = score / ((5 + length) / 6)^A`.
    """
    different = [list({output.translation: output for output in outputs}.values()) for outputs in results]
    pairs = [(source, output) for source, outputs in zip(sources, different) for output in outputs]
    scores = rescorer([source for source, _ in pairs], [output.translation for _, output in pairs])
    scores = iter(np.asarray(scores, float).tolist())
    ranked = []
    for outputs in different:
        scored = []
        for output in outputs:
            score = next(scores)
            rank_score = score / ((5 + output.length) / 6) ** length_penalty
            scored.append(output._replace(score=score, rank_score=rank_score))
        ranked.append(sorted(scored, key=lambda output: -output.rank_score))
    return ranked
