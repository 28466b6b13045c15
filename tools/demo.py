"""`make demo`: makes a small English-German corpus, trains on it, translates sentences never seen, prints BLEU."""

import os
import sys
import time

from sequencing import cli

cli.quiet_tensorflow()

import nmt_train  # noqa: E402
from sequencing.config_files import load_config  # noqa: E402
from sequencing.errors import UserError  # noqa: E402
from sequencing.scores import format_scores, score_lines  # noqa: E402
from sequencing.text import read_lines, write_lines  # noqa: E402
from sequencing.translator import load  # noqa: E402
from tools.make_demo_data import write_demo_data  # noqa: E402

USAGE = """
Trains a model on a small corpus of its own grammar and translates sentences that never occurred in training.

  python tools/demo.py --config config_demo
"""
EXAMPLES = 5


def define_flags(flags):
    from absl import flags as absl

    absl.DEFINE_string('config', 'config_demo', 'configuration to train', flag_values=flags)
    absl.DEFINE_string('model_dir', '', "folder of the model; by default the configuration's", flag_values=flags)
    absl.DEFINE_multi_string('set', [], 'FIELD=VALUE, as for nmt_train.py', flag_values=flags)


def main(argv=None):
    return cli.run(demo, define_flags, argv, USAGE)


def demo(flags):
    settings = flags['set'].value
    config, _ = load_config(flags.config, settings=settings)
    model_dir = flags.model_dir or config.model_dir
    folder = config.data.path('')
    if not os.path.exists(config.data.path(config.data.test_src)):
        if os.path.isdir(folder) and os.listdir(folder):
            raise UserError(f'{folder} is not empty and holds no demo corpus: the demo needs a folder of its own.')
        write_demo_data(folder, config.seed)
    arguments = ['nmt_train.py', f'--config={flags.config}', f'--model_dir={model_dir}', '--restart']
    began = time.monotonic()
    code = nmt_train.main(arguments + [f'--set={setting}' for setting in settings])
    if code:
        return code
    seconds = time.monotonic() - began
    source, reference = (
        list(read_lines(config.data.path(name))) for name in (config.data.test_src, config.data.test_trg[0])
    )
    translations = load(model_dir).translate(source)
    write_lines(os.path.join(model_dir, 'translations', 'test.txt'), translations)
    print()
    for i in range(0, len(source), max(len(source) // EXAMPLES, 1))[:EXAMPLES]:
        print(f'source      {source[i]}\ntranslation {translations[i]}\nreference   {reference[i]}\n')
    print(f"try it: echo '{source[0]}' | {sys.executable} nmt_infer.py --model_dir {model_dir}\n")
    scores = score_lines(translations, [reference], config.data.trg_lang)
    print(format_scores(scores))
    print(f'demo: BLEU {scores[0][0].score:.1f} on {len(source)} unseen sentences, trained in {seconds:.0f} s')
    return 0


if __name__ == '__main__':
    sys.exit(main(sys.argv))
