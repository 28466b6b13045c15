"""Choosing among candidate translations by what lies outside the decoding that made them: `npd` and `mbr`.

    npd  noisy parallel decoding: another model scores each candidate (Gu et al., 2018)
    mbr  minimum Bayes risk: the candidate that agrees most with the others (Kumar and Byrne, 2004), which for an
         autoregressive model are samples (Eikema and Aziz, 2020)

Each different text counts once. Both work on text, so the other model may have another vocabulary.
"""

import itertools
from collections import Counter

import numpy as np

from sequencing.decode_options import options_for

MODES = ('npd', 'mbr')
CHRF_ORDER, CHRF_BETA = 6, 2  # sacreBLEU's, as in chrF2


def rerank(lines, results, options, language='', rescorer=None):
    """The different outputs of each line, best first.

    Args:
      lines: the sources, a list of str.
      results: the candidates of each line, a list of lists of `translator.Output`.
      options: `DecodeOptions`; `decode` is one of `MODES`.
      language: code of the target language, for the utility BLEU.
      rescorer: `Translator` of an autoregressive model, whose log p(output | line) becomes the `score`; mbr does
        without.
    Returns:
      a list of lists of `Output`, and which sources the other model cut, a list of bool. `rank_score` is for npd the
      score, divided by `((5 + length) / 6)^length_penalty` with the length in pieces of the model that gave the score;
      for mbr the mean utility.
    """
    results, cut = [distinct(outputs) for outputs in results], [False] * len(lines)
    if rescorer is not None:
        results, cut = with_scores_of(rescorer, lines, results, options.batch_tokens)
    ranked = []
    for outputs in results:
        if options.decode == 'npd':
            lengths = [len(rescorer.trg_vocab.encode(output.translation)) for output in outputs]
            ranks = [
                output.score / ((5 + length) / 6) ** options.length_penalty for output, length in zip(outputs, lengths)
            ]
        else:
            ranks = mean_utilities([output.translation for output in outputs], options.utility, language)
        outputs = [output._replace(rank_score=float(rank)) for output, rank in zip(outputs, ranks)]
        ranked.append(sorted(outputs, key=lambda output: -output.rank_score))
    return ranked, cut


def distinct(outputs):
    """One output a text, in order: of equal texts the one with the highest score."""
    best = {}
    for output in outputs:
        known = best.get(output.translation)
        if known is None or output.score > known.score:
            best[output.translation] = output
    return list(best.values())


def with_scores_of(rescorer, lines, results, batch_tokens):
    """The outputs of each line with another model's log p(output | line) as `score`; which lines that model cut."""
    options = options_for(rescorer.model, rescorer.config, batch_tokens=batch_tokens)
    pairs = [(line, output.translation) for line, outputs in zip(lines, results) for output in outputs]
    found = rescorer.scores_and_cuts(*zip(*pairs), options)
    told = iter(zip(*found[:2]))
    scored, cut = [], []
    for outputs in results:
        scores, cuts = zip(*itertools.islice(told, len(outputs)))
        scored.append([output._replace(score=score) for output, score in zip(outputs, scores)])
        cut.append(cuts[0])
    return scored, cut


def mean_utilities(texts, utility='chrf', language=''):
    """How much each text agrees with the others.

    Args:
      texts: different candidate translations of one line.
      utility: 'chrf' or 'bleu', of sentences, with the other text as the reference.
      language: code of the target language, which decides how BLEU cuts words.
    Returns:
      `[n]` float64, means over the other texts, 0 to 100; 100 for a text that is alone.
    """
    if len(texts) == 1:
        return np.array([100.0])
    table = chrf_table(texts) if utility == 'chrf' else bleu_table(texts, language)
    np.fill_diagonal(table, 0.0)
    return table.sum(axis=1) / (len(texts) - 1)


def bleu_table(texts, language=''):
    """Sentence BLEU of every text against every other, `[n, n]`, by sacreBLEU."""
    from sequencing.scores import make_metrics

    metric, _ = make_metrics(language)
    metric.effective_order = True  # a sentence of three words has no n-grams of four to count
    return np.array([[metric.sentence_score(text, [other]).score for other in texts] for text in texts])


def chrf_table(texts):
    """Sentence chrF of every text against every other, `[n, n]`: sacreBLEU's figures, all pairs at once.

    Characters but white space count. Precision and recall are means over the orders that both texts have.

    Reference: Popovic, 2015, https://aclanthology.org/W15-3049
    """
    texts = [''.join(text.split()) for text in texts]
    precision, recall, orders = np.zeros([3, len(texts), len(texts)])
    for order in range(1, CHRF_ORDER + 1):
        counts = _ngram_counts(texts, order)
        matches = np.array([np.minimum(row, counts).sum(axis=1) for row in counts], float)
        totals = counts.sum(axis=1)
        both = (totals[:, np.newaxis] > 0) & (totals > 0)
        safe = np.maximum(totals, 1)
        precision += matches / safe[:, np.newaxis]
        recall += matches / safe
        orders += both
    precision, recall = [np.divide(x, orders, out=np.zeros_like(x), where=orders > 0) for x in (precision, recall)]
    below = CHRF_BETA**2 * precision + recall
    above = 100.0 * (1 + CHRF_BETA**2) * precision * recall
    return np.divide(above, below, out=np.zeros_like(above), where=below > 0)


def _ngram_counts(texts, order):
    """How often each n-gram of any text is in each text, `[n, n-grams]` int32."""
    rows = [Counter(text[i : i + order] for i in range(len(text) - order + 1)) for text in texts]
    columns = {ngram: i for i, ngram in enumerate(set().union(*rows))}
    counts = np.zeros([len(texts), len(columns)], np.int32)
    for row, found in zip(counts, rows):
        row[[columns[ngram] for ngram in found]] = list(found.values())
    return counts
