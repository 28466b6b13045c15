"""A warm start finds every weight of another model, whatever else its checkpoint holds."""

import contextlib
import dataclasses
import io
import os
import tempfile

import numpy as np
import tensorflow as tf

from sequencing.flow_config import FlowPriorConfig
from sequencing.model_folder import Checkpoints, write_config
from sequencing.optimizers import build_optimizer
from sequencing.training import TrainingState
from sequencing.warm_start import warm_start
from tests.flow_support import tiny_flow_model
from tests.support import seeds


class WarmStartTest(tf.test.TestCase):
    def test_a_flow_takes_over_all_of_another_from_a_checkpoint_of_its_training(self):
        random = seeds(self)
        # Its linear layers hold a permutation, which is not trained but decides what the trained weights mean.
        prior = FlowPriorConfig(steps=(1,), factors=(), hidden_size=6, heads=2, linear='lu')
        (model, config, vocab), (other, _, _) = (tiny_flow_model(random, {'prior': prior}) for _ in range(2))
        optimizer = build_optimizer(config.train)
        optimizer.build(model.trainable_variables)
        with tempfile.TemporaryDirectory() as folder:
            os.makedirs(f'{folder}/vocab')
            for side in ('src', 'trg'):
                vocab.save(f'{folder}/vocab', side)
            write_config(folder, config)
            Checkpoints(folder, model, optimizer, TrainingState(4), 1).save()
            there = config.model.decoder.copy_source
            decoder = dataclasses.replace(config.model.decoder, copy_source=not there)
            changed = dataclasses.replace(config.model, decoder=decoder)
            with contextlib.redirect_stdout(io.StringIO()) as said:
                told = warm_start(other, changed, vocab, vocab, folder)
        self.assertEqual(set(told.values()), {'taken'})
        told_apart = [f'  model.decoder.copy_source: {not there} here, {there} there']
        self.assertEqual(said.getvalue().splitlines()[1:], told_apart)
        self.assertEqual(len(told), len(model.variables))
        for got, want in zip(other.variables, model.variables, strict=True):
            np.testing.assert_array_equal(got, want, err_msg=want.name)


if __name__ == '__main__':
    tf.test.main()
