"""Toy corpora and the smallest of trainings, for tests of the whole."""

import os
import subprocess
import sys

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
TASKS = {'copy': lambda words: words, 'reverse': lambda words: words[::-1], 'sort': sorted}

CONFIG = """
import dataclasses
from sequencing.config import *
from sequencing.flow_config import *

def config_toy():
    return Config(
        data=DataConfig(
            folder={folder!r}, corpora=(CorpusConfig('train.src', 'train.trg'),), dev_src='dev.src',
            dev_trg=('dev.trg',), src_vocab=VocabConfig('words', size=100), trg_vocab=VocabConfig('words', size=100),
        ),
        model=Seq2SeqConfig(
            embedding_size=16, encoder=RNNEncoderConfig(state_size=32, dropout=0.1),
            decoder=RNNDecoderConfig(state_size=32, attention_size=16, readout_size=16, dropout=0.1),
        ),
        train=TrainConfig(
            learning_rate=5e-3, batch_size=8, batch_unit='sentences', max_steps=10, validate_every=1000, save_every=3,
            log_every=1, samples=1,
        ),
    )


def config_toy_transformer():
    toy = config_toy()
    return dataclasses.replace(
        toy,
        model=Seq2SeqConfig(
            embedding_size=16, encoder=TransformerEncoderConfig(layers=1, size=16, heads=2, hidden_size=24),
            decoder=TransformerDecoderConfig(layers=1, size=16, heads=2, hidden_size=24),
        ),
        train=dataclasses.replace(toy.train, optimizer='adamw', weight_decay=0.1, ema=0.9),
    )


def config_toy_flow():
    toy = config_toy()
    return dataclasses.replace(
        toy,
        data=dataclasses.replace(toy.data, dev_src='', dev_trg=()),
        model=FlowSeqConfig(
            embedding_size=8, latent_size=8, hidden_size=10, length=SoftmaxLengthConfig(reach=5),
            encoder=FlowTransformerEncoderConfig(layers=1, heads=2),
            posterior=FlowTransformerPosteriorConfig(layers=1, heads=2),
            decoder=FlowTransformerDecoderConfig(layers=1, heads=2, copy_source=True),
            prior=FlowPriorConfig(steps=(0,), factors=(), hidden_size=6, heads=2),
        ),
        train=dataclasses.replace(
            toy.train, accumulate=2,
            flow=FlowTrainConfig(reconstruction_steps=4, init_sentences=9, kl_warmup_steps=5, glancing=1.0),
        ),
    )
"""


def write_task(folder, task, random, words='abcdefgh', shortest=2, longest=6, train=800, dev=20):
    """Writes train and dev text of a toy task and the configuration `config_toy`; returns the configuration's file."""
    os.makedirs(folder, exist_ok=True)
    seen = set()
    for name, count in (('dev', dev), ('train', train)):
        with open(f'{folder}/{name}.src', 'w') as src, open(f'{folder}/{name}.trg', 'w') as trg:
            while count:
                line = [random.choice(words) for _ in range(random.randint(shortest, longest))]
                if name == 'train' and tuple(line) in seen:
                    continue
                seen.update([tuple(line)] if name == 'dev' else [])
                src.write(' '.join(line) + '\n')
                trg.write(' '.join(TASKS[task](line)) + '\n')
                count -= 1
    path = os.path.join(folder, 'config_toy.py')
    with open(path, 'w') as file:
        file.write(CONFIG.format(folder=folder))
    return path


def train_command(config_file, model_dir, *settings, config='config_toy', script='nmt_train.py'):
    """The command line that trains a toy configuration; `script` is a path below the repository, or a whole one."""
    command = [sys.executable, os.path.join(ROOT, script), f'--config={config}',
               f'--config_file={config_file}', f'--model_dir={model_dir}']  # fmt: skip
    return command + [f'--set={setting}' for setting in settings]


def start(command):
    """Starts a command with its output to be read line by line."""
    environment = {**os.environ, 'PYTHONPATH': ROOT, 'CUDA_VISIBLE_DEVICES': '-1'}
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=ROOT
    )


def wait_for(process, text):
    """Reads a process's output until a line holds `text`; returns what came before, with it."""
    read = []
    for line in process.stdout:
        read.append(line)
        if text in line:
            return ''.join(read)
    raise AssertionError(f'{text!r} never came:\n{"".join(read)}')
