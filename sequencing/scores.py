"""BLEU and chrF by sacreBLEU, never without their signatures."""

from sacrebleu.metrics import BLEU, CHRF

from sequencing.errors import UserError


def tokenizer_for(language):
    """The name of sacreBLEU's tokenizer for a target language code ('' for unknown)."""
    names = {'zh': 'zh', 'ja': 'ja-mecab', 'ko': 'ko-mecab'}
    return names.get(language.lower().replace('_', '-').split('-')[0], '13a')


def make_metrics(language=''):
    """BLEU and chrF of sacreBLEU for a target language code.

    Raises:
      UserError: a package is missing that cuts the language into words.
    """
    name = tokenizer_for(language)
    try:
        return BLEU(tokenize=name), CHRF()
    except (RuntimeError, ImportError):
        extra = name.split('-')[0]
        raise UserError(f"BLEU of language {language!r} needs sacreBLEU's tokenizer {name}: "
                        f"pip install 'sacrebleu[{extra}]'.") from None  # fmt: skip


def score_lines(lines, references, language=''):
    """Corpus scores.

    Args:
      lines: translations, a list of texts.
      references: a list of lists of texts, one list for each reference file.
      language: code of the target language.
    Returns:
      a list of (score object of sacreBLEU, its signature), BLEU first, then chrF.
    """
    metrics = make_metrics(language)
    return [(metric.corpus_score(lines, references), str(metric.get_signature())) for metric in metrics]


def format_scores(scores):
    """One line a score, as in `BLEU = 31.4 (nrefs:1|case:mixed|...)`."""
    return '\n'.join(f'{score.name} = {score.score:.2f} ({signature})' for score, signature in scores)
