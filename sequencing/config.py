"""The configuration: every field, its default, its limits and when to change it.

`config_example.py` has functions `config_*()` that return a `Config`; people copy that file and edit it.
"""

import dataclasses
import os
from dataclasses import dataclass
from typing import Union

from sequencing.flow_config import FlowSeqConfig, FlowTrainConfig
from sequencing.options import check, option
from sequencing.sequence_config import RLConfig, SamplingConfig


@dataclass(frozen=True)
class CorpusConfig:
    """Two parallel files, line n of one translating line n of the other; `.gz` is read as it is."""

    src: str = option('train.src', 'source text file, relative to data.folder')
    trg: str = option('train.trg', 'target text file, relative to data.folder')
    weight: float = option(0.0, 'share of this corpus in every batch; 0 means by its size', at_least=0)


@dataclass(frozen=True)
class VocabConfig:
    """How text is cut into tokens."""

    kind: str = option(
        'unigram', 'kind of tokens', choices=('unigram', 'bpe', 'words', 'characters', 'list', 'sentencepiece')
    )
    size: int = option(8000, 'tokens, special ones included, when the vocabulary is made from the training text',
                       at_least=5)  # fmt: skip
    file: str = option('', 'an existing SentencePiece model (kind sentencepiece) or token list (kind list)')
    delimiter: str = option(' ', "what parts the tokens of a line for kind list: ' ', or '' for characters",
                            choices=(' ', ''))  # fmt: skip


@dataclass(frozen=True)
class DataConfig:
    """Where the text is, how it is cut, and which pairs are left out."""

    folder: str = option('', 'folder that the file names are relative to')
    corpora: tuple[CorpusConfig, ...] = option(lambda: (CorpusConfig(),), 'training text')
    dev_src: str = option('', 'source of the dev set; empty for none')
    dev_trg: tuple[str, ...] = option((), 'references of the dev set, one file or several')
    test_src: str = option('', 'source of the test set')
    test_trg: tuple[str, ...] = option((), 'references of the test set')
    src_lang: str = option('', 'language code of the source')
    trg_lang: str = option('', 'language code of the target: decides how BLEU cuts words (zh, ja, ko; others as 13a)')
    src_vocab: VocabConfig = option(VocabConfig, 'tokens of the source')
    trg_vocab: VocabConfig = option(VocabConfig, 'tokens of the target; the same as the source when joint_vocab is set')
    joint_vocab: bool = option(False, 'one vocabulary for both sides, made from both')
    max_src_length: int = option(100, 'longest source kept in training, in tokens, EOS included', at_least=2)
    max_trg_length: int = option(100, 'longest target kept in training, in tokens, EOS included', at_least=2)
    max_length_ratio: float = option(9.0, 'pairs where one side has more than this times the tokens of the other are '
                                     'dropped; 0 keeps them', at_least=0)  # fmt: skip
    cache_dir: str = option('', 'folder of the encoded text; empty for MODEL_DIR.cache beside the model folder')

    def path(self, name):
        """The path of a file of this corpus, relative to `folder`; `~` and `$NAME` are filled in."""
        return os.path.join(*(os.path.expandvars(os.path.expanduser(part)) for part in (self.folder, name)))

    def problems(self):
        if self.joint_vocab and self.src_vocab != self.trg_vocab:
            yield 'trg_vocab', 'has to equal data.src_vocab when data.joint_vocab is true: there is one vocabulary.'
        if bool(self.dev_src) != bool(self.dev_trg):
            yield 'dev_trg', 'and data.dev_src go together: give both or neither.'
        weighted = [corpus.weight > 0 for corpus in self.corpora]
        if any(weighted) and not all(weighted):
            yield 'corpora', 'have to have a weight each, or none at all.'
        if not self.corpora:
            yield 'corpora', 'is empty: name at least one pair of training files.'


@dataclass(frozen=True)
class RNNEncoderConfig:
    """Stacked recurrent encoder (Bahdanau et al., 2015)."""

    kind: str = option('rnn', 'kind of encoder', choices=('rnn',))
    cell: str = option('lstm', 'recurrent cell', choices=('lstm', 'gru', 'rnn'))
    bidirectional: bool = option(True, 'read the source both ways, each way with half of state_size')
    layers: int = option(1, 'recurrent layers', at_least=1)
    state_size: int = option(512, 'units of a layer, both directions together', at_least=1)
    dropout: float = option(0.2, 'chance of dropping a unit between layers', at_least=0, below=1)

    def problems(self):
        if self.bidirectional and self.state_size % 2:
            yield 'state_size', f'is halved between the two directions and has to be even; got {self.state_size}.'


@dataclass(frozen=True)
class AvEncoderConfig:
    """Recurrent layers over characters, then over the words that they make, parted by spaces (Zhao and Zhang, 2018);
    needs a source vocabulary of characters and decoder.attention 'via'."""

    kind: str = option('ava', 'kind of encoder', choices=('ava',))
    cell: str = option('lstm', 'recurrent cell', choices=('lstm', 'gru', 'rnn'))
    layers: int = option(1, 'recurrent layers over words; characters have one', at_least=1)
    state_size: int = option(512, 'units of a layer, both directions together', at_least=1)
    dropout: float = option(0.2, 'chance of dropping a unit between layers', at_least=0, below=1)

    def problems(self):
        if self.state_size % 2:
            yield 'state_size', f'is halved between the two directions and has to be even; got {self.state_size}.'


@dataclass(frozen=True)
class RNNDecoderConfig:
    """Recurrent decoder with attention: the first layer attends, deeper layers read its output and the context."""

    kind: str = option('rnn', 'kind of decoder', choices=('rnn',))
    cell: str = option('lstm', 'recurrent cell', choices=('lstm', 'gru', 'rnn'))
    layers: int = option(1, 'recurrent layers', at_least=1)
    state_size: int = option(512, 'units of a layer', at_least=1)
    attention: str = option('additive', 'how states and source are compared (additive: Bahdanau et al., 2015; dot and '
                            'general: Luong et al., 2015), or via: words, and characters through them (encoder ava)',
                            choices=('additive', 'dot', 'general', 'via'))  # fmt: skip
    attention_size: int = option(512, 'size of the keys that are compared', at_least=1)
    readout_size: int = option(512, 'units between the state and the vocabulary', at_least=1)
    dropout: float = option(0.2, 'chance of dropping a unit of the inputs, between layers and of the readout',
                            at_least=0, below=1)  # fmt: skip
    recompute: bool = option(False, 'in training, compare states and source again in the backward pass: slower, less '
                             'memory for long sequences (attention additive and via)')  # fmt: skip

    @property
    def output_size(self):
        return self.readout_size

    def problems(self):
        if self.attention == 'dot' and self.attention_size != self.state_size:
            yield ('attention_size', 'is compared with the state itself when decoder.attention is dot, and has to '
                   f'equal state_size {self.state_size}; got {self.attention_size}.')  # fmt: skip


@dataclass(frozen=True)
class TransformerEncoderConfig:
    """Layers of self-attention and feed-forward (Vaswani et al., 2017)."""

    kind: str = option('transformer', 'kind of encoder', choices=('transformer',))
    layers: int = option(6, 'layers', at_least=1)
    size: int = option(512, 'units of a layer', at_least=1)
    heads: int = option(8, 'attention heads, which share the units of a layer', at_least=1)
    hidden_size: int = option(2048, 'units inside feed-forward', at_least=1)
    activation: str = option('relu', 'of feed-forward; swiglu (Shazeer, 2020) has half as many weights again',
                             choices=('relu', 'gelu', 'swiglu'))  # fmt: skip
    norm: str = option('pre', 'normalise what a part reads (pre: trains at any depth) or what it gives (post: the '
                       'original)', choices=('pre', 'post'))  # fmt: skip
    positions: str = option('sinusoidal', 'how order is told: fixed waves, a learned table, rotated queries and keys',
                            choices=('sinusoidal', 'learned', 'rotary', 'none'))  # fmt: skip
    max_positions: int = option(1024, 'rows of the table of learned positions; later tokens share the last row',
                                at_least=1)  # fmt: skip
    scale_embedding: bool = option(True, 'multiply embedded tokens by the root of embedding_size')
    dropout: float = option(0.1, 'chance of dropping an embedded unit, or one that a part adds', at_least=0, below=1)
    attention_dropout: float = option(0.1, 'chance of dropping an attention weight', at_least=0, below=1)
    hidden_dropout: float = option(0.1, 'chance of dropping a unit inside feed-forward', at_least=0, below=1)
    recompute: bool = option(False, 'compute layers again in the backward pass: less memory for long sequences, a '
                             'third more arithmetic')  # fmt: skip

    @property
    def output_size(self):
        return self.size

    def problems(self):
        if self.size % self.heads:
            yield 'size', f'is shared evenly by {self.heads} heads and has to be a multiple of it; got {self.size}.'
        elif self.positions == 'rotary' and self.size // self.heads % 2:
            yield ('positions', 'of kind rotary turn units of a head in pairs; size / heads is '
                   f'{self.size // self.heads}, which is odd.')  # fmt: skip


@dataclass(frozen=True)
class TransformerDecoderConfig(TransformerEncoderConfig):
    """Layers of causal self-attention, attention over the source and feed-forward (Vaswani et al., 2017)."""


@dataclass(frozen=True)
class ConvEncoderConfig:
    """Gated convolutions (ConvS2S: Gehring et al., 2017)."""

    kind: str = option('conv', 'kind of encoder', choices=('conv',))
    layers: int = option(6, 'layers', at_least=1)
    size: int = option(512, 'units of a layer', at_least=1)
    width: int = option(3, 'steps that a window spans, odd', at_least=1)
    positions: str = option('learned', 'how order is told: fixed waves or a learned table',
                            choices=('sinusoidal', 'learned', 'none'))  # fmt: skip
    max_positions: int = option(1024, 'rows of the table of learned positions; later tokens share the last row',
                                at_least=1)  # fmt: skip
    scale_embedding: bool = option(True, 'multiply embedded tokens by the root of embedding_size')
    weight_norm: bool = option(False, "learn length and direction of a convolution's weights apart (Salimans and "
                               'Kingma, 2016)')  # fmt: skip
    dropout: float = option(0.1, "chance of dropping an embedded unit, or one of a convolution's input", at_least=0,
                            below=1)  # fmt: skip

    @property
    def output_size(self):
        return self.size

    def problems(self):
        if self.width % 2 == 0:
            yield 'width', f'is centred on a step and has to be odd; got {self.width}.'


@dataclass(frozen=True)
class ConvDecoderConfig(ConvEncoderConfig):
    """Causal gated convolutions that each attend to the source (ConvS2S: Gehring et al., 2017)."""

    width: int = option(3, 'steps that a window spans, the last being the current one', at_least=1)

    def problems(self):
        return ()


@dataclass(frozen=True)
class Seq2SeqConfig:
    """An autoregressive model: any encoder with any decoder."""

    kind: str = option('seq2seq', 'kind of model', choices=('seq2seq',))
    embedding_size: int = option(256, 'units of a token on either side', at_least=1)
    share_embeddings: bool = option(False, 'one table for both sides; needs data.joint_vocab')
    tie_output: bool = option(False, 'the output layer is the target table; needs readout and embedding of one size')
    encoder: Union[RNNEncoderConfig, TransformerEncoderConfig, ConvEncoderConfig, AvEncoderConfig] = option(
        RNNEncoderConfig, 'reads the source'
    )
    decoder: Union[RNNDecoderConfig, TransformerDecoderConfig, ConvDecoderConfig] = option(
        RNNDecoderConfig, 'writes the target'
    )

    def problems(self):
        if self.tie_output and self.decoder.output_size != self.embedding_size:
            field = 'readout_size' if self.decoder.kind == 'rnn' else 'size'
            yield ('tie_output', f'makes the target table the output layer: decoder.{field} and embedding_size '
                   f'have to be equal; got {self.decoder.output_size} and {self.embedding_size}.')  # fmt: skip
        via = self.decoder.kind == 'rnn' and self.decoder.attention == 'via'
        if via != (self.encoder.kind == 'ava'):
            yield ('decoder', "of kind 'rnn' with attention 'via' and an encoder of kind 'ava' go together: take both "
                   'or neither.')  # fmt: skip


@dataclass(frozen=True)
class TrainConfig:
    """How the model learns."""

    optimizer: str = option('adam', 'update rule', choices=('adam', 'adamw', 'sgd'))
    learning_rate: float = option(1e-3, 'peak of the learning rate', above=0)
    schedule: str = option('constant', 'course of the learning rate after warm-up',
                           choices=('constant', 'inverse_sqrt', 'cosine', 'exponential'))  # fmt: skip
    warmup_steps: int = option(0, 'updates over which the rate rises linearly', at_least=0)
    warmup_from: float = option(0.0, 'share of the peak at which it begins to rise', at_least=0, at_most=1)
    decay_steps: int = option(0, 'updates after warm-up until the cosine ends, or over which the exponential falls by '
                              'decay_rate; 0 means up to max_steps', at_least=0)  # fmt: skip
    decay_rate: float = option(0.1, 'what the rate is multiplied by over decay_steps', above=0, at_most=1)
    beta_1: float = option(0.9, "decay of Adam's mean of gradients", at_least=0, below=1)
    beta_2: float = option(0.999, "decay of Adam's mean of squared gradients", at_least=0, below=1)
    epsilon: float = option(1e-8, "Adam's guard against division by zero", above=0)
    amsgrad: bool = option(False, 'never let the mean of squared gradients shrink (Reddi et al., 2018)')
    weight_decay: float = option(0.0, 'decoupled weight decay of adamw', at_least=0)
    clip_norm: float = option(5.0, 'longest gradient, in global norm; 0 leaves gradients alone', at_least=0)
    label_smoothing: float = option(0.0, 'probability spread over all tokens', at_least=0, below=1)
    loss_unit: str = option('tokens', 'what the loss of an update is divided by: its real target tokens or sentences '
                            '(always those in mode rl)', choices=('tokens', 'sentences'))  # fmt: skip
    batch_unit: str = option('tokens', "what batch_size counts: 'tokens' bounds sentences x longest side, padding "
                             'included', choices=('tokens', 'sentences'))  # fmt: skip
    batch_size: int = option(3000, 'size of a batch, in batch_unit', at_least=1)
    by_length: bool = option(True, 'sentences of like lengths make a batch, with little padding; false: those that '
                             'chance brings together (batch_unit sentences)')  # fmt: skip
    accumulate: int = option(1, 'batches whose gradients are added up for one update', at_least=1)
    ema: float = option(0.0, 'decay of a moving average of the weights that validation and decoding use; 0 for none',
                        at_least=0, below=1)  # fmt: skip
    max_steps: int = option(100_000, 'updates', at_least=1)
    max_epochs: float = option(0.0, 'passes over the training text; 0 for no limit', at_least=0)
    max_minutes: float = option(0.0, 'wall-clock minutes of this process; 0 for no limit', at_least=0)
    validate_every: int = option(1000, 'updates between validations', at_least=1)
    save_every: int = option(1000, 'updates between checkpoints', at_least=1)
    log_every: int = option(50, 'updates between progress lines', at_least=1)
    keep_checkpoints: int = option(3, 'last checkpoints that are kept, beside the best', at_least=1)
    patience: int = option(0, 'validations without a better score before training stops; 0 never stops', at_least=0)
    best_by: str = option('bleu', 'score that decides which checkpoint is best', choices=('bleu', 'chrf', 'nll'))
    samples: int = option(3, 'dev translations shown at each validation', at_least=0)
    nonfinite_limit: int = option(20, 'updates in a row that may be skipped for non-finite gradients before training '
                                  'stops', at_least=1)  # fmt: skip
    mode: str = option('train', 'train: likelihood, or the phases of a flow model; rl: sequence-level training by '
                       'train.rl; --mode overrides it', choices=('train', 'rl'))  # fmt: skip
    rl: RLConfig = option(RLConfig, 'sequence-level training')
    sampling: SamplingConfig = option(SamplingConfig, 'scheduled sampling, for autoregressive models')
    flow: FlowTrainConfig = option(FlowTrainConfig, 'what only flow models read')

    @property
    def divisor(self):
        """What the loss of an update is divided by: of sequences as wholes, whatever their lengths, the sentences."""
        return 'sentences' if self.mode == 'rl' else self.loss_unit

    def problems(self):
        if not self.by_length and self.batch_unit == 'tokens':
            yield 'by_length', "is false only where train.batch_unit is 'sentences'."
        if self.flow.reconstruction_steps >= self.max_steps:
            yield ('flow.reconstruction_steps', 'is the first part of train.max_steps and has to be smaller; got '
                   f'{self.flow.reconstruction_steps} and {self.max_steps}.')  # fmt: skip


@dataclass(frozen=True)
class DecodeConfig:
    """Decoding, in validation and by default in nmt_infer.py."""

    mode: str = option('', 'decoding mode; empty for the default of the model: beam, or argmax for flows')
    beam_size: int = option(5, 'hypotheses that beam search walks side by side', at_least=1)
    length_penalty: float = option(0.0, 'A in score / ((5 + length) / 6)^A (Wu et al., 2016); larger favours longer '
                                   'output', at_least=0)  # fmt: skip
    max_length: int = option(
        0, 'longest output in tokens, EOS not counted; 0 for length_ratio x source + 20', at_least=0
    )
    length_ratio: float = option(2.0, 'target tokens that a source token may become, for max_length 0; raise it where '
                                 'subwords become characters', above=0)  # fmt: skip
    max_src_length: int = option(1000, 'a longer source is cut to this many tokens, and said', at_least=1)
    batch_tokens: int = option(4000, 'source tokens decoded together, padding included', at_least=1)
    validation_mode: str = option('', 'decoding mode of validation; empty for greedy, or argmax for flows')


@dataclass(frozen=True)
class Config:
    """Everything that a training run is made of."""

    data: DataConfig = option(DataConfig, 'text')
    model: Union[Seq2SeqConfig, FlowSeqConfig] = option(Seq2SeqConfig, 'network')
    train: TrainConfig = option(TrainConfig, 'learning')
    decode: DecodeConfig = option(DecodeConfig, 'decoding')
    model_dir: str = option('', 'model folder; --model_dir overrides it')
    precision: str = option('float32', 'dtype of the arithmetic; weights, reductions and normalisation stay float32',
                            choices=('float32', 'mixed_bfloat16', 'mixed_float16'))  # fmt: skip
    seed: int = option(1, 'seed of weights, order, dropout and sampling', at_least=0, at_most=2**31 - 1)
    threads: int = option(0, 'CPU threads of one operation; 0 for all cores', at_least=0)

    def __post_init__(self):
        check(self)

    def problems(self):
        if self.model.share_embeddings and not self.data.joint_vocab:
            yield 'model.share_embeddings', 'needs one vocabulary for both sides: set data.joint_vocab to true.'
        weights = self.train.flow.kl_level_weights
        if weights and self.model.kind == 'flowseq' and len(weights) != self.model.prior.levels:
            yield ('train.flow.kl_level_weights', f'has one for each of the {self.model.prior.levels} levels of '
                   f'model.prior; got {weights}.')  # fmt: skip
        if self.model.kind == 'flowseq' and self.train.mode == 'rl':
            yield 'train.mode', "is 'rl', which is for autoregressive models; a flow model has no such training."
        if self.model.kind == 'flowseq' and self.train.sampling != SamplingConfig():
            yield 'train.sampling', 'is for models that write token by token; a flow model feeds no token back.'


def replace(config, **changes):
    """`dataclasses.replace`, under a name that configs read well with."""
    return dataclasses.replace(config, **changes)
