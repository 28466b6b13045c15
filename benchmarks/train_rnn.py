"""Training speed of the RNN attention model beside the same model written plainly in PyTorch.

    python benchmarks/train_rnn.py

One LSTM layer of 512 units on each side: bidirectional encoder (256 a direction), additive attention fed back into the
decoder, readout of 512, vocabularies of 8,000, batch 64 x 25 without padding, Adam, clipping at 5, dropout 0.1. Target
tokens/s of whole updates. PyTorch runs eager; its bfloat16 is autocast. `best` compares the best precision of each.
"""

import sys
import time

from absl import flags

from sequencing import cli

SENTENCES, STEPS, VOCAB, UNITS, EMBEDDING = 64, 25, 8000, 512, 512


def define(values):
    flags.DEFINE_integer('rounds', 3, 'times that each side is measured', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('repeats', 10, 'updates timed in a round', lower_bound=1, flag_values=values)
    flags.DEFINE_integer('threads', 2, 'threads of either side', lower_bound=1, flag_values=values)
    flags.DEFINE_enum('side', '', ['', 'ours', 'peer'], 'used by this command itself', flag_values=values)
    flags.DEFINE_enum('precision', 'float32', ['float32', 'bf16'], 'used by this command itself', flag_values=values)


def main(argv=None):
    return cli.run(benchmark, define, argv, usage=__doc__)


def benchmark(values):
    if values.side:
        rate = {'ours': ours, 'peer': peer}[values.side](values)
        print(rate)
        return 0
    from side_by_side import compare, report

    about = {'peer_name': 'PyTorch eager', 'shape': f'{SENTENCES} x {STEPS}, {UNITS} units, vocabulary {VOCAB}',
             'threads': values.threads}  # fmt: skip
    rates = []
    for precision in ('float32', 'bf16'):
        commands = [
            [sys.executable, __file__, f'--side={side}', f'--precision={precision}', f'--threads={values.threads}',
             f'--repeats={values.repeats}']
            for side in ('ours', 'peer')
        ]  # fmt: skip
        rates.append(compare(f'train_rnn/{precision}', *commands, values.rounds, 'target tokens/s', **about))
    mine, theirs = (max(side) for side in zip(*rates))
    report('train_rnn/best', mine / theirs, (mine / theirs,) * 2, mine, theirs, 'target tokens/s', **about)
    return 0


def ours(values):
    cli.quiet_tensorflow()
    from side_by_side import training_rate

    from sequencing.config import Config, RNNDecoderConfig, RNNEncoderConfig, Seq2SeqConfig

    config = Config(
        model=Seq2SeqConfig(
            embedding_size=EMBEDDING,
            encoder=RNNEncoderConfig(state_size=UNITS, dropout=0.1),
            decoder=RNNDecoderConfig(state_size=UNITS, attention_size=UNITS, readout_size=UNITS, dropout=0.1),
        ),
        precision='mixed_bfloat16' if values.precision == 'bf16' else 'float32',
    )
    return training_rate(config, VOCAB, SENTENCES, STEPS, values.threads, 3, values.repeats)


def peer(values):
    import torch
    from side_by_side import median_rate
    from torch import nn

    torch.set_num_threads(values.threads)
    torch.manual_seed(1)

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.src, self.trg = nn.Embedding(VOCAB, EMBEDDING), nn.Embedding(VOCAB, EMBEDDING)
            self.encoder = nn.LSTM(EMBEDDING, UNITS // 2, batch_first=True, bidirectional=True)
            self.cell = nn.LSTMCell(EMBEDDING + UNITS, UNITS)
            self.bridge = nn.Linear(UNITS, 2 * UNITS)
            self.keys, self.query = nn.Linear(UNITS, UNITS), nn.Linear(UNITS, UNITS, bias=False)
            self.energy = nn.Linear(UNITS, 1, bias=False)
            self.readout = nn.Linear(EMBEDDING + 2 * UNITS, UNITS)
            self.output = nn.Linear(UNITS, VOCAB)
            self.dropout = nn.Dropout(0.1)

        def forward(self, src, fed):
            values, _ = self.encoder(self.dropout(self.src(src)))
            keys = self.keys(values)
            h, c = torch.tanh(self.bridge(values.mean(1))).chunk(2, -1)
            embedded = self.dropout(self.trg(fed))
            context, features = torch.zeros_like(values[:, 0]), []
            for t in range(fed.shape[1]):
                h, c = self.cell(torch.cat([embedded[:, t], context], -1), (h, c))
                weights = self.energy(torch.tanh(keys + self.query(h).unsqueeze(1))).squeeze(-1).softmax(-1)
                context = torch.bmm(weights.unsqueeze(1), values).squeeze(1)
                features.append(torch.cat([embedded[:, t], h, context], -1))
            return self.output(self.dropout(torch.tanh(self.readout(torch.stack(features, 1)))))

    model = Model()
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    ids = torch.randint(4, VOCAB, (SENTENCES, STEPS))

    def step():
        optimizer.zero_grad()
        with torch.autocast('cpu', torch.bfloat16, enabled=values.precision == 'bf16'):
            loss = nn.functional.cross_entropy(model(ids, ids).flatten(0, 1).float(), ids.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()

    return median_rate(step, SENTENCES * STEPS, 3, values.repeats, time.perf_counter)


if __name__ == '__main__':
    sys.exit(main(sys.argv))
