"""Whether a training may go on with another configuration, and what of it goes unread."""

import os
import re

from sequencing.errors import UserError
from sequencing.flow_config import FlowTrainConfig
from sequencing.model_folder import read_config, read_manifest
from sequencing.options import flatten
from sequencing.sequence_config import SamplingConfig

# Fields that decide the shapes of what was saved, or which example comes when.
FIXED = (
    'model.', 'seed', 'data.corpora', 'data.src_vocab', 'data.trg_vocab', 'data.joint_vocab', 'data.max_src_length',
    'data.max_trg_length', 'data.max_length_ratio', 'train.optimizer', 'train.amsgrad', 'train.ema', 'train.batch_unit',
    'train.batch_size', 'train.by_length', 'train.accumulate', 'train.flow.reconstruction_steps',
    'train.mode', 'train.rl.kind',
)  # fmt: skip


def check_same_data(model_dir, keys):
    """Compares the content of the training text with that of the run so far.

    Args:
      keys: keys of the encoded corpora, or None where nothing is resumed.
    Raises:
      UserError: the text changed, so that a position in it would mean other sentences.
    """
    before = read_manifest(model_dir).get('data', {}).get('keys')
    if keys is not None and before not in (None, keys):
        raise UserError(
            f'the training text is not what {model_dir} was trained on so far, so its position in it means nothing. '
            'Restore the text, use another --model_dir (with --init_from to keep the weights), or --restart.'
        )


def unread_by_rl(config):
    """The settings that are set, and that sequence-level training does not read."""
    flat = flatten(config)
    chances = ('train.label_smoothing', *[field for field in flat if re.fullmatch(r'model\..*dropout', field)])
    return [*_set(flat, 'train.sampling', SamplingConfig()), *[field for field in chances if flat[field]]]


def unread_without_flow(config):
    """The settings that are set, and that only the training of flow models reads."""
    return _set(flatten(config), 'train.flow', FlowTrainConfig())


def _set(flat, part, default):
    """Names of the fields of a part that are not as by default."""
    return [f'{part}.{name}' for name, value in flatten(default).items() if flat[f'{part}.{name}'] != value]


def check_resume(model_dir, config):
    """Compares the configuration with the one that the folder was trained with, if any.

    Returns:
      a sentence for each other change, to be said once nothing else stands against going on.
    Raises:
      UserError: a field changed that a running training cannot change; both values are shown.
    """
    if not os.path.exists(os.path.join(model_dir, 'config.json')):
        return []
    old, new = flatten(read_config(model_dir)), flatten(config)
    missing = '(nothing)'
    changed = {
        field: (old.get(field, missing), new.get(field, missing))
        for field in dict.fromkeys([*old, *new])
        if old.get(field, missing) != new.get(field, missing) and field != 'model_dir'
    }
    fixed = FIXED if config.train.mode == 'rl' else tuple(field for field in FIXED if not field.startswith('train.rl'))
    refused = {field: values for field, values in changed.items() if field.startswith(fixed)}
    if refused:
        # Of another kind of part every field differs: the kinds say it all.
        refused = {field: values for field, values in refused.items() if field.endswith('.kind')} or refused
        shown = '; '.join(f'{field} was {was!r} and is now {now!r}' for field, (was, now) in refused.items())
        raise UserError(
            f'{model_dir} was trained with another configuration and cannot go on with this one: {shown}. Use the old '
            'values, another --model_dir (with --init_from to keep matching weights), or --restart.'
        )
    return [f'{field} is now {now!r}, was {was!r}' for field, (was, now) in changed.items()]
