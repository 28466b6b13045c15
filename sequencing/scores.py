"""BLEU and chrF by sacreBLEU, never without their signatures."""

from sacrebleu.metrics import BLEU, CHRF


def tokenizer_for(language):
    """The name of sacreBLEU's tokenizer for a target language code ('' for unknown)."""
    names = {'zh': 'zh', 'ja': 'ja-mecab', 'ko': 'ko-mecab'}
    return names.get(language.lower().replace('_', '-').split('-')[0], '13a')


def score_lines(lines, references, language=''):
    """Corpus scores.

    Args:
      lines: translations, a list of texts.
      references: a list of lists of texts, one list for each reference file.
      language: code of the target language.
    Returns:
      a list of (score object of sacreBLEU, its signature), BLEU first, then chrF.
    """
    metrics = (BLEU(tokenize=tokenizer_for(language)), CHRF())
    return [(metric.corpus_score(lines, references), str(metric.get_signature())) for metric in metrics]


def format_scores(scores):
    """One line a score, as in `BLEU = 31.4 (nrefs:1|case:mixed|...)`."""
    return '\n'.join(f'{score.name} = {score.score:.2f} ({signature})' for score, signature in scores)
