"""Tells what ails a flow model: KL, active channels, invertibility, where its latents come from, and a verdict.

python tools/flow_doctor.py --model_dir runs/demo_flow --dev_src dev.en --dev_trg dev.de --output_file doctor.png
"""

import os
import sys

import numpy as np

from sequencing import cli
from sequencing.errors import UserError

USAGE = """
Tells what ails a flow model, with a verdict in words (healthy, collapsed, exploding, undertrained) and what to try.

  python tools/flow_doctor.py --model_dir runs/demo_flow --dev_src dev.en --dev_trg dev.de --output_file doctor.png
"""


def define_flags(flags):
    from absl import flags as absl

    absl.DEFINE_string('model_dir', '', 'folder of a flow model', flag_values=flags)
    absl.DEFINE_string('dev_src', '', "source text; by default the configuration's dev set", flag_values=flags)
    absl.DEFINE_string('dev_trg', '', 'its translation, line by line', flag_values=flags)
    absl.DEFINE_string('checkpoint', 'last', "'best', 'last' or the path of a checkpoint", flag_values=flags)
    absl.DEFINE_string('output_file', '', 'picture of latents and lengths (.png, .pdf, .svg); none by default',
                       flag_values=flags)  # fmt: skip


def main(argv=None):
    return cli.run(examine, define_flags, argv, USAGE)


def examine(flags):
    cli.require(flags, 'model_dir')
    cli.quiet_tensorflow()
    import build_inputs
    from sequencing.flow_diagnosis import Probe
    from sequencing.scores import score_lines
    from sequencing.translator import load_model

    if bool(flags.dev_src) != bool(flags.dev_trg):
        raise UserError('--dev_src and --dev_trg go together: give both or neither.')
    folder = os.path.dirname(os.path.abspath(flags.output_file))
    if flags.output_file and not os.path.isdir(folder):
        raise UserError(f'--output_file {flags.output_file}: there is no folder {folder}.')
    model, config, src_vocab, trg_vocab = load_model(flags.model_dir, flags.checkpoint)
    if config.model.kind != 'flowseq':
        raise UserError(f'--model_dir {flags.model_dir}: not a flow model but {config.model.kind}.')
    if not flags.dev_src and not config.data.dev_src:
        raise UserError('--dev_src and --dev_trg are required: the configuration names no dev set.')
    dev = build_inputs.build_eval_inputs(
        config, src_vocab, trg_vocab, model.length_unit, flags.dev_src or None, flags.dev_trg or None
    )
    findings, ids, latents, lengths = Probe(model).measure(dev.batches())
    if findings.nonfinite:
        return tell(findings)
    references = [text_of(row, trg_vocab) for row in true_targets(dev)]
    bleu = {
        source: score_lines([text_of(row, trg_vocab) for row in rows], [references], config.data.trg_lang)[0][0].score
        for source, rows in ids.items()
    }
    print(report(findings, bleu, dev.size))
    if flags.output_file:
        draw(flags.output_file, latents, lengths)
    return tell(findings)


def tell(findings):
    from sequencing.flow_diagnosis import verdict

    print('verdict: {}\n  because {}\n  try {}'.format(*verdict(findings)))
    return 0


def true_targets(dev):
    for batch in dev.batches():
        yield from (row[mask] for row, mask in zip(batch.trg_ids, batch.trg_mask))


def text_of(ids, vocab):
    ends = np.flatnonzero(ids == vocab.eos_id)
    return vocab.decode(ids[: ends[0] if len(ends) else len(ids)])


def report(findings, bleu, size):
    """The measures as lines of text."""
    names = {'posterior': 'the posterior', 'prior': 'the prior', 'other': "a neighbour's posterior", 'zeros': 'zeros'}
    levels = ', '.join(f'{kl:.2f}' for kl in findings.kl_by_level)
    lines = [
        f'{size} sentences; nats a position unless said',
        f'reconstruction {findings.reconstruction:.3f}, KL {findings.kl:.3f} (levels {levels})',
        f'length {findings.length:.2f} nats a sentence, off by {findings.length_error:.2f} tokens on average',
        f'active channels {findings.active} of {findings.channels}; posterior mean {findings.mean:.3f} (root mean '
        f'square), deviation {findings.deviation:.3f}',
        f'round trip off by at most {findings.round_trip:.1e}; log-det of a position {findings.log_det[0]:.1f} to '
        f'{findings.log_det[1]:.1f}',
        f'largest condition number {findings.condition[0]:.1f} {findings.condition[1]}'.rstrip(),
        f'ActNorm scales {findings.scales[0]:.3g} to {findings.scales[1]:.3g}',
        'decoded at the true length from',
    ]
    lines += [
        f'  {names[source]:24} {findings.accuracy[source]:6.1%} of positions right, BLEU {score:.2f}'
        for source, score in bleu.items()
    ]
    return '\n'.join(lines)


def draw(path, latents, lengths):
    """Latents of the posterior and the prior on their two main axes, and predicted against true lengths."""
    try:
        import matplotlib

        matplotlib.use('Agg')
        import matplotlib.pyplot as plt
    except ImportError:
        raise UserError('a picture needs matplotlib: pip install matplotlib.') from None
    posterior = latents['posterior'][:2000]
    centre = posterior.mean(axis=0)
    axes = np.linalg.svd(posterior - centre, full_matrices=False)[2][:2]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.5))
    for name, values in latents.items():
        places = (values[:2000] - centre) @ axes.T
        left.plot(*places.T, '.', markersize=2, alpha=0.5, label=name)
    left.set(title='latents', xlabel="first axis of the posterior's means", ylabel='second axis')
    left.legend()
    predicted, true = lengths
    right.plot(true, predicted, '.', markersize=3, alpha=0.3)
    right.plot([0, max(true)], [0, max(true)], 'k-', linewidth=0.5)
    right.set(title='lengths', xlabel='true', ylabel='predicted')
    figure.tight_layout()
    try:
        figure.savefig(path)
    except (OSError, ValueError) as error:
        raise UserError(f'--output_file {path}: cannot be written ({error}).') from error
    finally:
        plt.close(figure)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
