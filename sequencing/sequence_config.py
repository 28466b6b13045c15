"""The configuration of what goes beyond teacher forcing: scheduled sampling and sequence-level training."""

from dataclasses import dataclass

from sequencing.options import option


@dataclass(frozen=True)
class SamplingConfig:
    """Scheduled sampling: the decoder is fed what it would have chosen itself in place of some reference tokens.

    With n updates since `begin_step`, and s for `decay_steps`, the chance of the reference token is

        constant          teacher_rate
        linear            falls from teacher_rate to least_rate in s updates
        exponential       least_rate + (teacher_rate - least_rate) * e^(-n / s)
        inverse_sigmoid   least_rate + (teacher_rate - least_rate) * s / (s + e^(n / s))

    Reference: Bengio et al., 2015, section 2.4, https://arxiv.org/abs/1506.03099
    """

    teacher_rate: float = option(1.0, 'chance of the reference token; 1 is teacher forcing', at_least=0, at_most=1)
    schedule: str = option('constant', 'course of teacher_rate',
                           choices=('constant', 'linear', 'exponential', 'inverse_sigmoid'))  # fmt: skip
    least_rate: float = option(0.0, 'what a schedule falls to', at_least=0, at_most=1)
    begin_step: int = option(0, 'updates before a schedule begins', at_least=0)
    decay_steps: int = option(10_000, 's of the schedule: larger falls more slowly', at_least=1)
    choice: str = option('argmax', "what takes the reference token's place: the likeliest token, or one drawn from the "
                         'model', choices=('argmax', 'sample'))  # fmt: skip

    def problems(self):
        if self.schedule != 'constant' and self.least_rate > self.teacher_rate:
            yield 'least_rate', f'is what teacher_rate {self.teacher_rate} falls to; got {self.least_rate}.'


@dataclass(frozen=True)
class RLConfig:
    """Sequence-level training (`--mode rl`), best begun from a trained model (`--init_from`)."""

    kind: str = option('mrt', 'mixer: likelihood on a prefix that shrinks, REINFORCE on the rest (Ranzato et al., '
                       '2016); mrt: minimum risk among samples (Shen et al., 2016)',
                       choices=('mixer', 'mrt'))  # fmt: skip
    reward: str = option('bleu', 'sentence BLEU over pieces, or sentence chrF of the text (mrt only), '
                         'which compares every pair of characters: slow and large where sentences are long',
                         choices=('bleu', 'chrf'))  # fmt: skip
    max_length_ratio: float = option(1.5, 'longest sample, in lengths of its reference; 5 tokens are added', at_least=1)
    burn_in_step: int = option(0, 'mixer: updates by likelihood alone; the next draws one token a sentence', at_least=0)
    increment_step: int = option(100, 'mixer: updates after which one more token at the end of each sentence is drawn',
                                 at_least=1)  # fmt: skip
    samples: int = option(8, 'mrt: samples a source, which a batch grows by; equal ones count once', at_least=2)
    temperature: float = option(1.0, 'mrt: of the samples; below 1 they are likelier, and more of them equal', above=0)
    alpha: float = option(0.005, 'mrt: sharpness of the distribution over candidates', above=0)
    reference: bool = option(True, 'mrt: the reference is a candidate too')

    def problems(self):
        if self.kind == 'mixer' and self.reward != 'bleu':
            yield 'reward', f"of kind mixer is 'bleu', which is known for every prefix; got {self.reward!r}."
