"""Bijectors over masked sequences `[B, T, D]`: the layers of a conditional flow. Nothing here knows of translation."""

from flow_layers.actnorm import ActNorm
from flow_layers.bijector import FlowMemory, SequenceBijector
from flow_layers.conditioners import ConvConditioner, RecurrentConditioner, SelfAttentionConditioner
from flow_layers.coupling import Coupling, FeatureSplit, TimeSplit
from flow_layers.invertible_linear import InvertibleLinear, MultiHeadLinear
from flow_layers.masked_normal import masked_normal, masked_normal_log_prob
from flow_layers.sequence_flow import MultiLevelFlow, SequenceFlow
from flow_layers.transforms import ADDITIVE, AFFINE, NLSQ, TRANSFORMS

__all__ = [
    'ActNorm',
    'FlowMemory',
    'SequenceBijector',
    'ConvConditioner',
    'RecurrentConditioner',
    'SelfAttentionConditioner',
    'Coupling',
    'FeatureSplit',
    'TimeSplit',
    'InvertibleLinear',
    'MultiHeadLinear',
    'masked_normal',
    'masked_normal_log_prob',
    'MultiLevelFlow',
    'SequenceFlow',
    'AFFINE',
    'ADDITIVE',
    'NLSQ',
    'TRANSFORMS',
]
