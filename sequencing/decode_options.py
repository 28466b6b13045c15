"""What a user may ask of decoding, checked against what the model can do."""

import dataclasses
import difflib
from dataclasses import dataclass

import numpy as np

from sequencing.errors import UserError
from sequencing.options import check, option

# What modes read of the options that belong to some modes only; and of flow models.
_SAMPLING = {'temperature', 'top_k', 'top_p'}
_READ = {
    'beam': {'beam_size'},
    'greedy': set(),
    'sample': _SAMPLING,
    'mbr': {*_SAMPLING, 'ntr', 'utility', 'rescore_model'},
}
_CANDIDATES = {'tau', 'nlen', 'ntr'}
_READ_BY_FLOWS = {
    'argmax': {'tau', 'ntr'},
    'sample': _CANDIDATES,
    'iw': {*_CANDIDATES, 'iw_k'},
    'npd': {*_CANDIDATES, 'rescore_model'},
    'mbr': {*_CANDIDATES, 'utility', 'rescore_model'},
}
MBR_SAMPLES = 32  # that mbr of autoregressive models compares, where --ntr says nothing


@dataclass(frozen=True)
class DecodeOptions:
    """One request. Fields are named as the flags of nmt_infer.py; a mode ignores those that are not its own."""

    decode: str = option('beam', 'decoding mode')
    beam_size: int = option(5, 'hypotheses that beam search walks', at_least=1)
    length_penalty: float = option(0.0, 'exponent of the length penalty in rank scores', at_least=0)
    nbest: int = option(1, 'outputs a sentence', at_least=1)
    max_length: int = option(
        0, 'longest output in tokens, EOS not counted; 0 for length_ratio x source + 20', at_least=0
    )
    length_ratio: float = option(2.0, 'target tokens that a source token may become, for max_length 0', above=0)
    max_src_length: int = option(1000, 'longer sources are cut to this many tokens', at_least=1)
    batch_tokens: int = option(4000, 'source tokens decoded together, padding included', at_least=1)
    temperature: float = option(1.0, 'sampling temperature of tokens', above=0)
    top_k: int = option(0, 'sample among this many likeliest tokens; 0 for all', at_least=0)
    top_p: float = option(1.0, 'sample among the fewest tokens with this much probability', above=0, at_most=1)
    tau: float = option(0.0, 'temperature of the latent noise of flow models', at_least=0)
    nlen: int = option(3, 'lengths that flow models try', at_least=1)
    ntr: int = option(1, 'latent samples a length (flow models), or samples in all (mbr of others)', at_least=1)
    iw_k: int = option(4, 'posterior samples of importance-weighted decoding', at_least=1)
    rescore_model: str = option('', 'folder of an autoregressive model that scores the candidates of npd and mbr')
    utility: str = option('chrf', 'agreement that mbr ranks by', choices=('chrf', 'bleu'))
    seed: int = option(1, 'seed of sampling', at_least=0, at_most=2**31 - 1)
    attention: bool = option(False, 'return attention weights')

    def __post_init__(self):
        check(self)

    def of_the_graph(self):
        """The same without what a model's `translate` does not read or is given as a tensor, to tell which requests
        share a traced function."""
        fields = dict(
            max_length=0, length_ratio=1.0, max_src_length=1, batch_tokens=1, rescore_model='', utility='chrf', seed=0
        )
        return dataclasses.replace(self, **fields)

    def limits(self, tokens):
        """Longest outputs `[B]` int32, EOS not counted, of sources of `[B]` tokens, EOS not counted."""
        longest = np.full_like(tokens, self.max_length) if self.max_length else self.length_ratio * tokens + 20
        return longest.astype(np.int32)

    def flow_candidates(self):
        """How many candidates a flow model is asked for; a source has fewer where fewer lengths can be told."""
        if self.decode == 'argmax':
            return self.ntr if self.tau else 1  # without noise all would be the same
        return self.nlen * self.ntr

    def flow_rows(self, most_lengths):
        """How many sentences the parts of a flow model read at once for a source of at most so many lengths."""
        if self.decode == 'argmax':
            return self.flow_candidates()
        return min(self.nlen, most_lengths) * self.ntr * (self.iw_k if self.decode == 'iw' else 1)

    def problems(self):
        if self.decode == 'beam' and self.nbest > self.beam_size:
            yield 'nbest', f'is at most beam_size {self.beam_size} in beam search; got {self.nbest}.'


def unread(model, config, **asked):
    """What to tell of options that were asked for and change nothing, a list; arguments as of `options_for`."""
    options = options_for(model, config, **asked)
    table = _READ if config.model.kind == 'seq2seq' else _READ_BY_FLOWS
    of_some_modes = set().union(*_READ.values(), *_READ_BY_FLOWS.values())
    given = [name for name, value in asked.items() if value is not None and name in of_some_modes]
    told = [f'--{name} is not read by --decode {options.decode} of this model.'
            for name in given if name not in table[options.decode]]  # fmt: skip
    if config.model.kind != 'seq2seq' and (options.ntr > 1 and not options.tau):
        told.append(f'--ntr {options.ntr} without --tau: all samples of a length are the same.')
    return told


def options_for(model, config, **asked):
    """The options of a request: what was asked, else what the model folder's configuration says.

    Args:
      model: has `decoding_modes`, the default one first.
      config: `Config` of the model.
      asked: fields of `DecodeOptions`; None means not asked.
    Raises:
      UserError: an option that there is not, a mode that the model does not have, or npd without a model that scores.
    """
    decode = config.decode
    defaults = {
        'decode': decode.mode or model.decoding_modes[0],
        'beam_size': decode.beam_size,
        'length_penalty': decode.length_penalty,
        'max_length': decode.max_length,
        'length_ratio': decode.length_ratio,
        'max_src_length': decode.max_src_length,
        'batch_tokens': decode.batch_tokens,
    }
    if config.model.kind != 'flowseq':
        defaults['ntr'] = MBR_SAMPLES
    chosen = {**defaults, **{name: value for name, value in asked.items() if value is not None}}
    fields = {field.name: field for field in dataclasses.fields(DecodeOptions)}
    for name, value in chosen.items():
        if name not in fields:
            raise UserError(f'{name} is no option of decoding; there are {", ".join(fields)}.{_meant(name, fields)}')
        if fields[name].type is float and isinstance(value, int):
            chosen[name] = float(value)
    if chosen['decode'] not in model.decoding_modes:
        raise UserError(
            f'--decode {chosen["decode"]} is not a mode of this model ({config.model.kind}): '
            f'it has {", ".join(model.decoding_modes)}.{_meant(chosen["decode"], model.decoding_modes)}'
        )
    if chosen['decode'] == 'npd' and not chosen.get('rescore_model'):
        raise UserError('--decode npd needs --rescore_model: the folder of an autoregressive model, which scores the '
                        'candidates.')  # fmt: skip
    return DecodeOptions(**chosen)


def _meant(name, names):
    close = difflib.get_close_matches(name, names, n=1)
    return f' Did you mean {close[0]}?' if close else ''
