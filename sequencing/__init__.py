"""Sequencing: sequence-to-sequence learning in plain TensorFlow 2.

Public names in reading order. Each is loaded when it is first asked for, so that `import sequencing` costs nothing.
"""

import importlib

__version__ = '2.0.0.dev0'

_PLACES = {
    'Vocab': 'vocab',
    'LookUpOp': 'layers',
    'LinearOp': 'layers',
    'StackRNNEncoder': 'rnn_encoders',
    'StackBidirectionalRNNEncoder': 'rnn_encoders',
    'Attention': 'attention',
    'AvAttention': 'attention_via_attention',
    'AttentionRNNDecoder': 'rnn_decoder',
    'TrainingFeedBack': 'feedback',
    'RLTrainingFeedBack': 'feedback',
    'GreedyFeedBack': 'feedback',
    'SampleFeedBack': 'feedback',
    'BeamFeedBack': 'feedback',
    'dynamic_decode': 'dynamic_decode',
    'Config': 'config',
    'load': 'translator',
}

__all__ = list(_PLACES)


def __getattr__(name):
    if name not in _PLACES:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(importlib.import_module(f'{__name__}.{_PLACES[name]}'), name)
