"""The configuration of a FlowSeq model; `sequencing.config` holds the rest."""

from dataclasses import dataclass
from typing import Union

from sequencing.options import option

_CELL = 'recurrent cell'
_CELLS = ('lstm', 'gru', 'rnn')
_DROPOUT = 'chance of dropping a unit'
_WORDS = 'chance of dropping a whole token'
_EMBEDDED = 'chance of dropping a unit of an embedded token'


def _rate(default, help):
    return option(default, help, at_least=0, below=1)


@dataclass(frozen=True)
class FlowTransformerEncoderConfig:
    """Post-norm Transformer over the source; needs latent_size equal to embedding_size."""

    kind: str = option('transformer', 'kind of encoder', choices=('transformer',))
    layers: int = option(6, 'layers', at_least=1)
    heads: int = option(8, 'heads of every attention', at_least=1)
    dropout: float = _rate(0.1, _DROPOUT)
    embedding_dropout: float = _rate(0.2, _EMBEDDED)


@dataclass(frozen=True)
class FlowRNNEncoderConfig:
    """Bidirectional recurrent layers over the source."""

    kind: str = option('rnn', 'kind of encoder', choices=('rnn',))
    layers: int = option(2, 'layers', at_least=1)
    cell: str = option('lstm', _CELL, choices=_CELLS)
    embedding_dropout: float = _rate(0.2, _EMBEDDED)


@dataclass(frozen=True)
class FlowTransformerPosteriorConfig:
    """Transformer over target and source; needs latent_size equal to embedding_size."""

    kind: str = option('transformer', 'kind of posterior', choices=('transformer',))
    layers: int = option(4, 'layers', at_least=1)
    heads: int = option(8, 'heads of every attention', at_least=1)
    dropout: float = _rate(0.1, _DROPOUT)
    embedding_dropout: float = _rate(0.2, _EMBEDDED)
    word_dropout: float = _rate(0.2, _WORDS)


@dataclass(frozen=True)
class FlowRNNPosteriorConfig:
    """Recurrent layers over the target; with `shifted`, no latent sees its own token."""

    kind: str = option('rnn', 'kind of posterior', choices=('rnn',))
    layers: int = option(1, 'layers', at_least=1)
    cell: str = option('lstm', _CELL, choices=_CELLS)
    shifted: bool = option(False, 'position t reads the states of t - 1 and t + 1 only (one layer)')
    bidirectional: bool = option(True, 'read both ways; false only with shifted')
    attention: bool = option(True, 'look at the source')
    dropout: float = _rate(0.33, _DROPOUT)
    word_dropout: float = _rate(0.2, _WORDS)

    def problems(self):
        if self.shifted and self.layers != 1:
            yield 'layers', f'is 1 when shifted is true: deeper layers would see the token; got {self.layers}.'
        if not self.bidirectional and not self.shifted:
            yield 'bidirectional', 'is false only when shifted is true.'


@dataclass(frozen=True)
class FlowTransformerDecoderConfig:
    """Non-autoregressive Transformer decoder."""

    kind: str = option('transformer', 'kind of decoder', choices=('transformer',))
    layers: int = option(4, 'layers', at_least=1)
    heads: int = option(8, 'heads of every attention', at_least=1)
    dropout: float = _rate(0.1, _DROPOUT)
    word_dropout: float = _rate(0.0, 'chance of dropping a whole latent')
    copy_source: bool = option(False, 'positions begin with what the source says at the same place of the sentence')


@dataclass(frozen=True)
class FlowRNNDecoderConfig:
    """Non-autoregressive recurrent decoder; with 0 layers, positions do not know of each other ('simple')."""

    kind: str = option('rnn', 'kind of decoder', choices=('rnn',))
    layers: int = option(1, 'layers; 0 for none', at_least=0)
    cell: str = option('lstm', _CELL, choices=_CELLS)
    bidirectional: bool = option(True, 'read both ways')
    dropout: float = _rate(0.33, _DROPOUT)
    word_dropout: float = _rate(0.2, 'chance of dropping a whole latent')


@dataclass(frozen=True)
class SoftmaxLengthConfig:
    """A softmax over the difference of target and source length."""

    kind: str = option('softmax', 'kind of length predictor', choices=('softmax',))
    reach: int = option(20, 'largest difference of target and source length, in tokens', at_least=2)
    dropout: float = _rate(0.33, _DROPOUT)
    label_smoothing: float = option(0.1, 'probability spread over all lengths', at_least=0, below=1)


@dataclass(frozen=True)
class LogisticLengthConfig:
    """A mixture of discretised logistics over the difference of target and source length."""

    kind: str = option('logistic', 'kind of length predictor', choices=('logistic',))
    reach: int = option(20, 'largest difference of target and source length, in tokens', at_least=2)
    mixtures: int = option(10, 'components', at_least=1)
    dropout: float = _rate(0.33, _DROPOUT)


@dataclass(frozen=True)
class FlowPriorConfig:
    """The prior over latents: a multi-level Glow-style flow that looks at the source."""

    kind: str = option('flow', 'kind of prior', choices=('flow',))
    steps: tuple[int, ...] = option((4, 4, 2), 'steps of each level', at_least=0)
    factors: tuple[int, ...] = option((2, 2), 'one part in how many of the channels is done after a level; one for '
                                      'each level but the last', at_least=2)  # fmt: skip
    coupling: str = option(
        'self_attention', 'network inside couplings', choices=('self_attention', 'recurrent', 'conv')
    )
    transform: str = option('affine', 'what a coupling does to an element', choices=('additive', 'affine', 'nlsq'))
    hidden_size: int = option(
        512, 'units inside couplings; 0 for twice the conditioning part, at most 1024', at_least=0
    )
    heads: int = option(8, 'heads of self-attention couplings', at_least=1)
    positions: str = option('attend', "'attend': every level starts with a unit in which positions attend to latents; "
                            "'add': positions are only added", choices=('attend', 'add'))  # fmt: skip
    cell: str = option('lstm', 'cell of recurrent couplings', choices=_CELLS)
    kernel_size: int = option(3, 'steps that a convolution sees, odd', at_least=1)
    linear: str = option('plain', "how channels are mixed: 'plain' matrices, or 'lu' factors, which cannot become "
                         'singular', choices=('plain', 'lu'))  # fmt: skip
    dropout: float = _rate(0.0, _DROPOUT)
    unmasked_first: bool = option(False, 'first convolution writes into padding, as in the published code; only for '
                                  'models imported from it')  # fmt: skip

    @property
    def levels(self):
        return len(self.steps)

    def problems(self):
        if len(self.factors) != len(self.steps) - 1:
            yield 'factors', f'has one entry for each of the {len(self.steps)} levels but the last; got {self.factors}.'
        if self.kernel_size % 2 == 0:
            yield 'kernel_size', f'is odd; got {self.kernel_size}.'


@dataclass(frozen=True)
class GaussianPriorConfig:
    """A diagonal Gaussian in place of the flow, to see what the flow buys; its means and deviations are read off the
    source by Transformer layers."""

    kind: str = option('gaussian', 'kind of prior', choices=('gaussian',))
    hidden_size: int = option(512, 'units of feed-forward', at_least=1)
    heads: int = option(8, 'heads of attention', at_least=1)
    dropout: float = _rate(0.0, _DROPOUT)
    length_unit: int = option(4, 'target lengths are multiples of it', at_least=1)
    levels = 1


@dataclass(frozen=True)
class FlowSeqConfig:
    """FlowSeq (Ma et al., 2019): one latent a target position, a flow as their prior, all tokens at once."""

    kind: str = option('flowseq', 'kind of model', choices=('flowseq',))
    embedding_size: int = option(256, 'units of a token on either side', at_least=1)
    latent_size: int = option(256, 'channels of a latent', at_least=4)
    hidden_size: int = option(1024, 'units of feed-forward, or of recurrent layers', at_least=1)
    share_embeddings: bool = option(False, 'one table for both sides; needs data.joint_vocab')
    tie_output: bool = option(False, 'the output layer is the target table; needs equal embedding and latent sizes')
    encoder: Union[FlowTransformerEncoderConfig, FlowRNNEncoderConfig] = option(
        FlowTransformerEncoderConfig, 'reads the source')  # fmt: skip
    posterior: Union[FlowTransformerPosteriorConfig, FlowRNNPosteriorConfig] = option(
        FlowTransformerPosteriorConfig, 'proposes latents from both sentences')  # fmt: skip
    decoder: Union[FlowTransformerDecoderConfig, FlowRNNDecoderConfig] = option(
        FlowTransformerDecoderConfig, 'writes the target from latents and source')  # fmt: skip
    length: Union[SoftmaxLengthConfig, LogisticLengthConfig] = option(SoftmaxLengthConfig, 'predicts the length')
    prior: Union[FlowPriorConfig, GaussianPriorConfig] = option(FlowPriorConfig, 'over latents')
    any_token: bool = option(False, 'let padding and unknown be chosen in decoding, as the published code does, to '
                             'compare with it')  # fmt: skip

    @property
    def length_unit(self):
        """Target lengths are filled up with EOS to a multiple of it."""
        return self.prior.length_unit if self.prior.kind == 'gaussian' else max(2, 2 ** (len(self.prior.steps) - 1))

    def problems(self):
        same = self.embedding_size == self.latent_size
        for name in ('encoder', 'posterior'):
            if getattr(self, name).kind == 'transformer' and not same:
                yield ('latent_size', f'has to equal embedding_size {self.embedding_size} when {name}.kind is '
                       f'transformer; got {self.latent_size}.')  # fmt: skip
        if self.tie_output and not same:
            yield ('tie_output', 'makes the target table the output layer: embedding_size and latent_size have to be '
                   f'equal; got {self.embedding_size} and {self.latent_size}.')  # fmt: skip
        for name in ('encoder', 'posterior', 'decoder'):
            part = getattr(self, name)
            if part.kind == 'transformer' and self.latent_size % part.heads:
                yield f'{name}.heads', f'has to divide latent_size {self.latent_size}; got {part.heads}.'
            if part.kind == 'rnn' and getattr(part, 'bidirectional', True) and self.hidden_size % 2:
                yield 'hidden_size', f'is halved between two directions and has to be even; got {self.hidden_size}.'
        if self.length.reach < self.length_unit:
            yield ('length.reach', f'has to be at least the length unit {self.length_unit} of the prior; got '
                   f'{self.length.reach}.')  # fmt: skip
        if self.prior.kind == 'flow':
            yield from self._flow_problems()
        elif self.latent_size % self.prior.heads:
            yield 'prior.heads', f'has to divide latent_size {self.latent_size}; got {self.prior.heads}.'

    def _flow_problems(self):
        prior, size = self.prior, self.latent_size
        if size % 2:
            yield 'latent_size', f'is halved by couplings and has to be even; got {size}.'
            return
        for i in range(len(prior.steps)):
            sizes = [size // 2] + ([size] if i < len(prior.factors) else [])
            if i < len(prior.factors):
                if prior.factors[i] > size:
                    yield 'prior.factors', f'cannot split {size} channels by {prior.factors[i]}.'
                    return
                sizes.append(size - size // prior.factors[i])
                size = 2 * sizes[-1]
            if prior.coupling == 'self_attention' and any(n % prior.heads for n in sizes):
                yield ('prior.heads', f'has to divide the conditioning sizes {sizes} of level {i}; got '
                       f'{prior.heads}.')  # fmt: skip
                return
        if prior.coupling == 'recurrent' and prior.hidden_size % 2:
            yield 'prior.hidden_size', f'is halved between two directions and has to be even; got {prior.hidden_size}.'


@dataclass(frozen=True)
class FlowTrainConfig:
    """The course of a flow model's training; the rest is in `TrainConfig`."""

    reconstruction_steps: int = option(0, 'first updates, in which only the reconstruction from the mean of the '
                                       'posterior is trained', at_least=0)  # fmt: skip
    reconstruction_warmup: int = option(4000, 'of these, the first ones, over which the rate rises', at_least=0)
    bound_rate: float = option(1.0, 'peak of the rate in the bound, as a share of train.learning_rate', above=0)
    init_sentences: int = option(512, 'random pairs on which layers are initialised before each phase', at_least=2)
    init_over_padding: bool = option(False, 'padding counts in that initialisation, as in the published code; only for '
                                     'models imported from it')  # fmt: skip
    samples: int = option(1, 'latents a sentence in the bound', at_least=1)
    kl_weight: float = option(1.0, 'of the KL once it is warm; 1 is the true bound, less keeps latents alive', above=0)
    kl_warmup_steps: int = option(0, 'updates after reconstruction over which it rises linearly from 0', at_least=0)
    kl_cycle_steps: int = option(0, 'updates after which it rises from 0 again (Fu et al., 2019); 0 for never',
                                 at_least=0)  # fmt: skip
    free_bits: float = option(0.0, 'nats of KL a target position that cost nothing (Kingma et al., 2016)', at_least=0)
    kl_level_weights: tuple[float, ...] = option((), 'of the part of each level of the prior in the KL that is paid '
                                                 '(free_bits then counts the weighted sum; log q is shared out by '
                                                 'channels); empty for 1', at_least=0)  # fmt: skip
    glancing: float = option(0.0, 'weight of the loss of glanced targets, which teaches the decoder on latents of the '
                             'prior (Qian et al., 2021); 0 for none', at_least=0)  # fmt: skip
    glancing_from: float = option(0.5, 'positions that are shown for each one that decoding had wrong, in the first '
                                  'update after reconstruction', at_least=0, at_most=1)  # fmt: skip
    glancing_to: float = option(0.3, 'the same in the last update, linearly in between', at_least=0, at_most=1)
