"""Training speed of the Transformer beside PyTorch's `nn.Transformer`, and beside TensorFlow's own matrix product.

    python benchmarks/train_transformer.py

`base` has 6 + 6 layers of 512 units, 8 heads, 2,048 units inside; `small` 3 + 3 of 256, 4 and 1,024. Pre-norm, one tied
table of 8,000 tokens, batch 64 x 25 without padding, label smoothing 0.1, dropout 0.1 in all places, Adam, clipping.
Target tokens/s of whole updates. PyTorch runs eager with its usual call; its bfloat16 is autocast. `best` compares the
best precision of each. `matmul_peak` lines compare the GFLOP/s of an update, counting only matrix products that the
model cannot do without, with those of one product of 2048 x 2048 matrices.
"""

import sys
import time

from absl import flags

from sequencing import cli

SENTENCES, STEPS, VOCAB = 64, 25, 8000
SHAPES = {'base': dict(layers=6, size=512, heads=8, hidden_size=2048),
          'small': dict(layers=3, size=256, heads=4, hidden_size=1024)}  # fmt: skip


def define(values):
    flags.DEFINE_list('shapes', list(SHAPES), 'shapes to measure', flag_values=values)
    flags.DEFINE_integer('rounds', 3, 'times that each side is measured', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('repeats', 5, 'updates timed in a round', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 2, 'threads of either side', lower_bound=1, flag_values=values)
    flags.DEFINE_enum('side', '', ['', 'ours', 'peer', 'compiled', 'peak'], 'used by this command itself',
                      flag_values=values)  # fmt: skip
    flags.DEFINE_enum('precision', 'float32', ['float32', 'bf16'], 'used by this command itself', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.side:
        print({'ours': ours, 'peer': peer, 'compiled': compiled, 'peak': peak}[values.side](values))
        return 0
    from side_by_side import compare, report, run

    for name in values.shapes:
        about = {'shape': f'{SENTENCES} x {STEPS}, {name} {SHAPES[name]}, vocabulary {VOCAB}',
                 'threads': values.threads}  # fmt: skip
        rates = []
        for precision in ('float32', 'bf16'):

            def command(side, name=name, precision=precision):
                return [sys.executable, __file__, f'--side={side}', f'--shapes={name}', f'--precision={precision}',
                        f'--threads={values.threads}', f'--repeats={values.repeats}']  # fmt: skip

            rates.append(
                compare(f'train_transformer/{name}/{precision}', command('ours'), command('peer'), values.rounds,
                        'target tokens/s', peer_name='PyTorch eager', **about)
            )  # fmt: skip
            speed, highest = rates[-1][0] * operations(**SHAPES[name]) / STEPS / SENTENCES / 1e9, run(command('peak'))
            report(f'train_transformer/{name}/matmul_peak/{precision}', speed / highest, (speed / highest,) * 2, speed,
                   highest, 'GFLOP/s', peer_name='TensorFlow matmul 2048^3', **about)  # fmt: skip
        mine, theirs = (max(side) for side in zip(*rates))
        report(f'train_transformer/{name}/best', mine / theirs, (mine / theirs,) * 2, mine, theirs, 'target tokens/s',
               peer_name='PyTorch eager', **about)  # fmt: skip
    return 0


def operations(layers, size, heads, hidden_size):
    """Floating-point operations of the matrix products of one update, forwards and backwards."""
    weights = layers * (4 + 8) * size**2 + 2 * layers * 2 * size * hidden_size + size * VOCAB
    compared = 3 * layers * 2 * STEPS * size  # scores and averages of a token, over both kinds of attention
    return 3 * 2 * SENTENCES * STEPS * (weights + compared)


def ours(values):
    cli.quiet_tensorflow()
    from side_by_side import training_rate

    from sequencing.config import (
        Config,
        DataConfig,
        Seq2SeqConfig,
        TrainConfig,
        TransformerDecoderConfig,
        TransformerEncoderConfig,
    )

    shape = SHAPES[values.shapes[0]]
    config = Config(
        data=DataConfig(joint_vocab=True),
        model=Seq2SeqConfig(
            embedding_size=shape['size'],
            share_embeddings=True,
            tie_output=True,
            encoder=TransformerEncoderConfig(**shape),
            decoder=TransformerDecoderConfig(**shape),
        ),
        train=TrainConfig(label_smoothing=0.1, clip_norm=1.0),
        precision='mixed_bfloat16' if values.precision == 'bf16' else 'float32',
    )
    return training_rate(config, VOCAB, SENTENCES, STEPS, values.threads, 2, values.repeats)


def peak(values):
    """GFLOP/s of TensorFlow's product of two matrices, in a graph."""
    cli.quiet_tensorflow()
    import tensorflow as tf
    from side_by_side import median_rate

    tf.config.threading.set_intra_op_parallelism_threads(values.threads)
    dtype = tf.bfloat16 if values.precision == 'bf16' else tf.float32
    x, y = tf.cast(tf.random.normal([2, 2048, 2048]), dtype)
    product = tf.function(lambda: tf.matmul(x, y), autograph=False)
    return median_rate(lambda: product().numpy(), 2 * 2048**3 / 1e9, 5, 20, time.perf_counter)


def compiled(values):
    """The peer under `torch.compile`, shown without a bar: `--side=compiled`."""
    return peer(values, compile=True)


def peer(values, compile=False):
    import math

    import torch
    from side_by_side import median_rate
    from torch import nn

    torch.set_num_threads(values.threads)
    torch.manual_seed(1)
    shape = SHAPES[values.shapes[0]]
    size = shape['size']

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(VOCAB, size)
            nn.init.normal_(self.table.weight, std=size**-0.5)
            self.transformer = nn.Transformer(
                size, shape['heads'], shape['layers'], shape['layers'], shape['hidden_size'], dropout=0.1,
                norm_first=True, batch_first=True,
            )  # fmt: skip
            self.dropout = nn.Dropout(0.1)
            rates = torch.exp(-math.log(10000.0) * torch.arange(0, size, 2) / size)
            angles = torch.arange(STEPS)[:, None] * rates
            self.register_buffer('positions', torch.cat([angles.sin(), angles.cos()], -1))
            self.register_buffer('future', nn.Transformer.generate_square_subsequent_mask(STEPS))

        def embed(self, ids):
            return self.dropout(self.table(ids) * math.sqrt(size) + self.positions)

        def forward(self, src, fed):
            features = self.transformer(self.embed(src), self.embed(fed), tgt_mask=self.future, tgt_is_causal=True)
            return features @ self.table.weight.T

    model = Model()
    reads = torch.compile(model) if compile else model
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ids = torch.randint(4, VOCAB, (SENTENCES, STEPS))

    def step():
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=values.precision == 'bf16'):
            logits = reads(ids, ids)
            loss = nn.functional.cross_entropy(logits.flatten(0, 1).float(), ids.flatten(), label_smoothing=0.1)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return median_rate(step, SENTENCES * STEPS, 2, values.repeats, time.perf_counter)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
