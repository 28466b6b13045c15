"""Validation: the dev set, really decoded, and scored as a user would score it."""

import os
import types

import numpy as np
import tensorflow as tf

from sequencing.decode_options import options_for
from sequencing.objectives import phase_at
from sequencing.scores import format_scores, make_metrics, score_lines
from sequencing.structures import Batch
from sequencing.text import read_parallel, write_lines
from sequencing.training import BATCH_SIGNATURE, exchange_with_averages
from sequencing.translator import Translator


class Validator:
    """Scores a model on the dev set.

    Args:
      config: `Config`; model_dir: where translations are kept.
      model, optimizer: of the training; with a moving average of the weights, that is what is validated.
      objective: as in `objectives.py`.
      src_vocab, trg_vocab: `Vocab`s.
      dev: has `batches()`, the dev set's `Batch`es, of which nll is computed; None without a dev set.
    """

    def __init__(self, config, model_dir, model, objective, optimizer, src_vocab, trg_vocab, dev):
        self.config, self.model_dir = config, model_dir
        self.model, self.objective, self.optimizer, self.dev = model, objective, optimizer, dev
        self.translator = Translator(model, config, src_vocab, trg_vocab)
        data = config.data
        self.source, self.references = [], []
        if data.dev_src:
            paths = [data.path(name) for name in (data.dev_src, *data.dev_trg)]
            self.source, *self.references = map(list, zip(*read_parallel(paths, 'dev set')))
        # Told now and not at the first validation.
        make_metrics(data.trg_lang)
        options_for(model, config)
        self.mode = config.decode.validation_mode or model.validation_mode
        options_for(model, config, decode=self.mode)
        self._losses = {
            phase.name: tf.function(
                lambda batch, phase=phase: objective.validation_loss(phase, batch),
                input_signature=[BATCH_SIGNATURE],
                autograph=False,
            )
            for phase in objective.phases
        }
        if len(objective.phases) > 1:
            self._reconstruction = tf.function(
                objective.reconstruct, input_signature=[BATCH_SIGNATURE], autograph=False
            )

    def validate(self, step, state, writer):
        """Decodes and scores the dev set, prints the scores and samples.

        Args:
          step: number of updates; state: `TrainingState`, whose record of the best score is kept up to date.
          writer: of TensorBoard scalars.
        Returns:
          whether this is the best so far. Without a dev set every checkpoint counts as the best. While the model does
          not translate yet there is no best one, nor a loss of patience.
        """
        phase = phase_at(self.objective, step - 1)
        if not self.source:
            return self.objective.translates(phase)
        translate = self._translate if self.objective.translates(phase) else self._reconstruct
        sums, translations = self.with_averages(lambda: (self._sums(phase), translate()))
        nll = sums.nll / max(sums.tokens, 1.0)
        details = self.objective.report(phase, sums, step)
        scores = score_lines(translations, self.references, self.config.data.trg_lang)
        shown = ''.join(f'  {name} {value:.4f}' for name, value in details.items())
        print(f'validation at step {step}: nll {nll:.4f}{shown}\n{format_scores(scores)}', flush=True)
        self._show_samples(translations)
        folder = os.path.join(self.model_dir, 'translations')
        os.makedirs(folder, exist_ok=True)
        write_lines(os.path.join(folder, f'dev.{step}.txt'), translations)
        (bleu, _), (chrf, _) = scores
        values = {'bleu': bleu.score, 'chrf': chrf.score, 'nll': -nll}
        with writer.as_default(step=step):
            for name, value in {**values, 'nll': nll, **details}.items():
                tf.summary.scalar(f'dev/{name}', value)
        return self.objective.translates(phase) and self._is_best(step, values[self.config.train.best_by], state)

    def with_averages(self, body):
        """Runs `body` with the moving average of the weights in place of the weights, where there is one."""
        if not self.config.train.ema:
            return body()
        exchange_with_averages(self.optimizer, self.model.trainable_variables)
        try:
            return body()
        finally:
            exchange_with_averages(self.optimizer, self.model.trainable_variables)

    def _sums(self, phase):
        sums = dict.fromkeys(self.objective.parts, 0.0)
        for batch in self.dev.batches():
            parts = self._losses[phase.name](Batch(*map(tf.constant, batch)))
            for name, value in zip(sums, np.concatenate([np.reshape(part, [-1]) for part in parts])):
                sums[name] += float(value)
        return types.SimpleNamespace(**sums)

    def _translate(self):
        return self.translator.translate(self.source, decode=self.mode)

    def _reconstruct(self):
        """Targets from their own latents, where the model does not translate yet."""
        lines, vocab = [], self.translator.trg_vocab
        for batch in self.dev.batches():
            for ids in self._reconstruction(Batch(*map(tf.constant, batch))).numpy():
                ends = np.flatnonzero((ids == vocab.eos_id) | (ids == vocab.pad_id))
                lines.append(vocab.decode(ids[: ends[0] if len(ends) else len(ids)]))
        return lines

    def _show_samples(self, translations):
        count = min(self.config.train.samples, len(translations))
        for i in range(0, len(translations), max(len(translations) // max(count, 1), 1))[:count]:
            print(f'  source      {self.source[i]}\n  translation {translations[i]}\n'
                  f'  reference   {self.references[0][i]}', flush=True)  # fmt: skip

    def _is_best(self, step, score, state):
        if score > float(state.best_score):
            state.best_score.assign(score)
            state.best_step.assign(step)
            state.rounds_without_gain.assign(0)
            return True
        state.rounds_without_gain.assign_add(1)
        return False
