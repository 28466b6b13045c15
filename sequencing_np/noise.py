"""Noise that belongs to a sentence: the same numbers as those of `sequencing.noise`."""

import math

import numpy as np


def mix(*parts):
    """Hashes integers, broadcast together, to uint32."""
    key = np.full([1], 0x9E3779B9, np.uint32)
    with np.errstate(over='ignore'):  # sums and products are meant modulo 2^32
        for part in parts:
            key = key ^ (np.asarray(part).astype(np.int64).astype(np.uint32) + np.uint32(0x7F4A7C15))
            key = (key ^ (key >> np.uint32(16))) * np.uint32(0x85EBCA6B)
            key = (key ^ (key >> np.uint32(13))) * np.uint32(0xC2B2AE35)
            key = key ^ (key >> np.uint32(16))
    return key


def source_hash(ids, mask):
    """A uint32 a sentence, `[B]`, from its real ids `[B, S]`, whatever the padding."""
    mixed = np.where(mask, (mix(ids, np.arange(ids.shape[1])) >> np.uint32(1)).astype(np.int64), 0)
    return mix(mixed.sum(axis=1) % 2**31)


def uniforms(*parts):
    """float32 in the open interval (0, 1), one for each hash of `parts`."""
    return ((mix(*parts) >> np.uint32(9)).astype(np.float32) + np.float32(0.5)) / np.float32(2**23)


def normals(*parts):
    """Standard normal float32, one for each hash of `parts` (Box and Muller, 1958)."""
    radius = np.sqrt(np.float32(-2) * np.log(uniforms(*parts, 1)))
    return radius * np.cos(np.float32(2.0 * math.pi) * uniforms(*parts, 2))
