"""What decoding of a FlowSeq model promises: batches, candidates, scores, sizes; on tiny models with random weights."""

import math
import unittest
from unittest import mock

import numpy as np
import tensorflow as tf

from sequencing import flowseq_decoding, noise
from sequencing.blocks import Rows
from sequencing.decode_options import DecodeOptions
from tests.flow_models import FlowModelCase
from tests.flow_support import random_batch, random_normal


class DecodingTest(FlowModelCase):
    def test_batch_and_single_agree_in_one_trace(self):
        """iw goes through every part of a model; the other modes of the first one are in test_flow_translation."""
        iw = dict(decode='iw', nlen=2, ntr=2, iw_k=3, tau=0.6)
        noisy = dict(decode='argmax', tau=0.7, ntr=3)
        for name, options in (('transformer', noisy), ('recurrent', iw), ('simple', iw)):
            with self.subTest(model=name, **options):
                model, _, vocab = self.model(name)
                batch = random_batch(self.random, vocab)
                translate = self.translator(model, **options)
                whole = translate(batch.src_ids, batch.src_mask)
                for i in range(4):
                    length = int(batch.src_mask[i].numpy().sum())
                    alone = translate(batch.src_ids[i : i + 1, :length], batch.src_mask[i : i + 1, :length])
                    finite = np.isfinite(alone.scores[0])
                    self.assertAllClose(whole.scores[i], alone.scores[0], 1e-4, 1e-4)
                    width = alone.ids.shape[2]
                    self.assertAllEqual(whole.ids[i, :, :width][finite], alone.ids[0][finite])
                    self.assertAllEqual(whole.lengths[i][finite], alone.lengths[0][finite])

    def test_the_score_is_the_scorers(self):
        for name in ('recurrent', 'simple'):
            model, _, vocab = self.model(name)
            batch = random_batch(self.random, vocab)
            for options in (dict(decode='argmax'), dict(decode='iw', nlen=2, ntr=2, iw_k=3, tau=0.6)):
                with self.subTest(model=name, **options):
                    found = self.translate(model, batch, **options)
                    ids, mask = self.filled(found, 0, vocab)
                    got, _ = flowseq_decoding.score(
                        model, batch.src_ids, batch.src_mask, ids, mask, DecodeOptions(**options)
                    )
                    self.assertAllClose(got, found.scores[:, 0], 1e-5, 1e-5)

    def test_scores_of_noisy_modes_are_those_of_their_latents(self):
        """Every candidate once more, on its own: its noise drawn, its latent generated, its tokens scored."""
        model, _, vocab = self.model()
        batch, samples, tau, seed = random_batch(self.random, vocab, batch=2), 3, 0.8, 7
        source, keys = model.encode(batch.src_ids, batch.src_mask), noise.source_hash(batch.src_ids, batch.src_mask)
        lengths, _ = model.length_predictor.predict(source.context, source.lengths, 2)
        channels = tf.range(model.latent_size)
        for decode in ('sample', 'mbr', 'argmax'):
            found = self.translate(model, batch, decode=decode, nlen=2, ntr=samples, tau=tau, seed=seed)
            for b in range(2):
                one = model.encode(batch.src_ids[b : b + 1], batch.src_mask[b : b + 1])
                wanted, densities = {}, {}
                for length in (lengths[b, :1] if decode == 'argmax' else lengths[b]).numpy():
                    rows = Rows(tf.ones([1, length], tf.bool))
                    times = tf.range(length)[:, tf.newaxis]
                    for number in range(samples):
                        draws = noise.normals(seed, keys[b], length, number, times, channels)
                        draws *= 0.0 if decode == 'mbr' and number == 0 else tau
                        z, density = flowseq_decoding.generate(model, one, rows, draws)
                        ids, *_ = flowseq_decoding.decode(model, one, z, rows)
                        wanted[length, number] = -float(model.cross_entropies(z, ids, rows, one)[1][0])
                        densities[float(density[0])] = wanted[length, number]
                if decode == 'argmax':
                    wanted = {0: densities[max(densities)]}
                self.assertAllClose(sorted(found.scores[b].numpy()), sorted(wanted.values()), 1e-5, 1e-5)

    def filled(self, found, place, vocab):
        """The outputs with their EOS filling, as a scorer reads them."""
        spans, lengths = found.spans[:, place], found.lengths[:, place]
        steps = tf.range(tf.reduce_max(spans))
        ids = found.ids[:, place, : tf.size(steps)]
        mask = steps < spans[:, tf.newaxis]
        ids = tf.where(steps < lengths[:, tf.newaxis], ids, tf.where(mask, vocab.eos_id, vocab.pad_id))
        return ids, mask

    def test_a_sample_without_noise_is_the_argmax(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        want = self.translate(model, batch, decode='argmax')
        got = self.translate(model, batch, decode='sample', nlen=1, ntr=1, tau=0.0)
        for name in ('ids', 'lengths', 'scores', 'length_log_probs'):
            self.assertAllEqual(getattr(got, name), getattr(want, name))

    def test_the_noise_free_candidate_is_among_those_of_iw(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        best = self.translate(model, batch, decode='argmax')
        found = self.translate(model, batch, decode='npd', nlen=1, ntr=4, tau=1.0)
        for i in range(4):
            scores = found.scores[i].numpy()
            self.assertLess(np.min(np.abs(scores - float(best.scores[i, 0]))), 1e-4)
        noisy = self.translate(model, batch, decode='sample', nlen=1, ntr=4, tau=1.0)
        self.assertNotAllClose(np.sort(noisy.scores), np.sort(found.scores))

    def test_likelier_latents_win_in_noisy_argmax(self):
        """The density that ranks samples is the one that the other direction computes."""
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        source = model.encode(batch.src_ids, batch.src_mask)
        rows = Rows(batch.trg_mask)
        noise = rows.only_real(random_normal(self.random, [24, 8], tf.float32))
        z, density = flowseq_decoding.generate(model, source, rows, noise)
        other = model.prior_log_prob(z, rows, source)
        self.assertAllClose(density, other, 1e-4, 1e-4)

    def test_the_bound_rises_with_more_samples(self):
        """In expectation (Burda et al., 2016): means of what is reported for many pairs, of other noise each time."""
        model, _, vocab = self.model('simple')
        # A posterior far wider than the prior: logarithms of weights differ by many nats, whatever the seed, so that
        # the best of several samples is worth many times what chance makes of means.
        model.posterior.log_variance.bias.assign_add(tf.fill([8], 3.0))
        batch, repeats = random_batch(self.random, vocab, batch=24, unit=3, trg_units=2), 10
        first, means = self.random.randrange(2**20), []
        for k in (1, 4, 16):
            score = self.scorer(model, batch, DecodeOptions(decode='iw', iw_k=k))
            scores = []
            for _ in range(repeats):  # no seed serves twice
                first += 1
                scores.append(score(first)[0].numpy())
            self.assertGreater(np.std(scores, axis=0).min(), 0.0)  # each seed has noise of its own
            means.append((np.mean(scores), np.sqrt(np.var(scores, axis=0, ddof=1).sum() / repeats) / 24))
        for (less, less_error), (more, more_error) in zip(means, means[1:]):
            self.assertGreater(more - less, 4 * math.hypot(less_error, more_error), means)

    def scorer(self, model, batch, options):
        """Scores and log p(T | x) of a batch by its seed, traced once."""

        def score(seed):
            return flowseq_decoding.score(model, *batch[:4], options, seed)

        score = tf.function(score, input_signature=[tf.TensorSpec([], tf.int32)], autograph=False)
        return lambda seed: score(np.int32(seed))

    def test_the_bound_is_the_log_mean_of_the_weights(self):
        """By hand, in NumPy where there is no network: log mean exp of the weights, and log p(T | x)."""
        for name in ('transformer', 'recurrent', 'simple'):
            model, config, vocab = self.model(name)
            unit = config.model.length_unit
            batch = random_batch(self.random, vocab, batch=3, unit=unit, trg_units=6 // unit)
            k, seed = 5, self.random.randrange(2**20)
            got, got_lengths = flowseq_decoding.score(model, *batch[:4], DecodeOptions(decode='iw', iw_k=k), seed)
            for i in range(3):
                s, t = [int(mask[i].numpy().sum()) for mask in (batch.src_mask, batch.trg_mask)]
                src, trg = batch.src_ids[i : i + 1, :s], batch.trg_ids[i : i + 1, :t]
                ones, rows = tf.ones([1, s], tf.bool), Rows(tf.ones([1, t], tf.bool))
                source = model.encode(src, ones)
                mean, log_variance = [x.numpy().astype(float) for x in model.posterior_ends(trg, rows, source)]
                key = noise.mix(noise.source_hash(src, ones), noise.source_hash(trg, rows.mask))
                weights = []
                for draws in model.latent_noise([seed, 0], key, k, t)[0].numpy().astype(float):
                    z = mean + np.exp(0.5 * log_variance) * draws
                    log_q = -0.5 * np.sum(draws**2 + math.log(2 * math.pi) + log_variance)
                    latent = tf.constant(z, tf.float32)
                    base, log_det = model.prior.forward_and_log_det(latent[tf.newaxis], rows.mask, source.for_prior())
                    log_p = float(log_det[0]) - 0.5 * np.sum(base.numpy().astype(float) ** 2 + math.log(2 * math.pi))
                    logits = model.logits(latent, rows, source).numpy().astype(float)
                    tokens = logits[np.arange(t), trg[0].numpy()] - np.logaddexp.reduce(logits, axis=1)
                    weights.append(log_p + tokens.sum() - log_q)
                lengths, log_probs = model.length_predictor.distribution(source.context, source.lengths)
                told = log_probs.numpy()[lengths.numpy() == t]
                length = told.max() if told.size else -math.inf
                self.assertAllClose(got_lengths[i], length, 1e-5, 1e-5)
                self.assertAllClose(got[i], math.log(np.mean(np.exp(weights))) + length, 1e-4, 1e-4)

    def test_candidates_that_are_the_same_are_scored_once(self):
        """Scores are those that each gets alone; what is scored has no repetitions, found here by sets."""
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab, batch=3)
        ids, spans = batch.trg_ids.numpy(), batch.trg_mask.numpy().sum(axis=1)
        chosen = np.array([[self.random.randrange(2 + i) for _ in range(5)] for i in range(2)])  # of three targets
        chosen[1] = chosen[1, [0, 0, 1, 2, 2]]
        source = model.encode(batch.src_ids[:2], batch.src_mask[:2])
        keys = noise.source_hash(batch.src_ids[:2], batch.src_mask[:2])
        log_probs = tf.zeros([2, 5])
        given = flowseq_decoding.Candidates(ids[chosen], spans[chosen], None, log_probs, None, None)
        with mock.patch.object(
            flowseq_decoding, 'importance_weights', wraps=flowseq_decoding.importance_weights
        ) as asked:
            got = flowseq_decoding.weighted_scores(model, source, keys, given, 3, 7)
        most = max(len({(spans[i], *ids[i]) for i in row}) for row in chosen.tolist())
        self.assertEqual(asked.call_args.args[2].shape[0], 2 * most)
        for row in range(2):
            one = model.encode(batch.src_ids[row : row + 1], batch.src_mask[row : row + 1])
            for place, i in enumerate(chosen[row]):
                alone = flowseq_decoding.Candidates(
                    ids[i][np.newaxis, np.newaxis], spans[[[i]]], None, tf.zeros([1, 1]), None, None
                )
                want = flowseq_decoding.weighted_scores(model, one, keys[row : row + 1], alone, 3, 7)
                self.assertAllClose(got[row, place], want[0, 0], 1e-4, 1e-4)

    def test_importance_weights_share_the_source(self):
        model, _, vocab = self.model('recurrent')
        batch = random_batch(self.random, vocab, batch=6)
        two = model.encode(batch.src_ids[:2], batch.src_mask[:2])
        six = model.encode(tf.repeat(batch.src_ids[:2], 3, axis=0), tf.repeat(batch.src_mask[:2], 3, axis=0))
        rows = Rows(batch.trg_mask)
        draws = random_normal(self.random, [6, 2, rows.time, 8], tf.float32)
        shared, repeated = [
            flowseq_decoding.importance_weights(model, source, batch.trg_ids, rows, draws) for source in (two, six)
        ]
        self.assertAllClose(shared, repeated, 1e-4, 1e-4)

    def test_more_lengths_than_there_are(self):
        model, _, vocab = self.model()
        batch = random_batch(self.random, vocab)
        found = self.translate(model, batch, decode='sample', nlen=40, ntr=2, tau=0.5)
        self.assertEqual(found.ids.shape[1], 2 * 6)  # no source has more than 6 even lengths within 5 of it
        for i in range(4):
            source = int(batch.src_mask[i].numpy().sum())
            possible = [n for n in range(1, source + 6) if n % 2 == 0 and n >= source - 5]
            self.assertEqual(int(found.candidates[i]), 2 * len(possible))
            self.assertEqual(int(np.isfinite(found.scores[i]).sum()), 2 * len(possible))
            self.assertEqual(set(found.spans[i, : 2 * len(possible)].numpy()), set(possible))

    def test_room_changes_nothing_but_longer_lengths(self):
        for name in ('transformer', 'recurrent', 'three levels'):
            model, _, vocab = self.model(name)
            batch = random_batch(self.random, vocab)
            limits, unit = tf.fill([4], 9), model.length_unit
            for decode in ('argmax', 'sample', 'iw'):
                with self.subTest(model=name, decode=decode):
                    options = DecodeOptions(decode=decode, nlen=3, ntr=2, tau=0.5, iw_k=2)
                    free = model.translate(*batch[:2], limits, options)
                    longest = int(tf.reduce_max(free.spans))
                    room = -(-longest // unit) * unit + 2 * unit
                    roomy = model.translate(*batch[:2], limits, options, room=room)
                    self.assertEqual(roomy.ids.shape[2], room)
                    self.assertAllEqual(roomy.ids[:, :, longest:], tf.zeros_like(roomy.ids[:, :, longest:]))
                    told = ('numbers', 'truncated') if decode != 'iw' else ()  # which of equals comes first is chance
                    for field in ('spans', 'lengths', 'candidates', *told):
                        self.assertAllEqual(getattr(roomy, field), getattr(free, field), field)
                    self.assertAllEqual(roomy.ids[:, :, : free.ids.shape[2]], free.ids)
                    for field in ('scores', 'rank_scores', 'length_log_probs'):
                        self.assertAllClose(getattr(roomy, field), getattr(free, field), 1e-4, 1e-4, field)
                    cut = model.translate(*batch[:2], limits, options, room=unit)
                    self.assertAllEqual(cut.spans, tf.fill(cut.spans.shape, unit))
                    self.assertAllEqual(cut.candidates, tf.fill([4], 2))  # of one length
                    self.assertTrue(np.isfinite(cut.scores[:, 0]).all())

    def test_sources_nobody_expects(self):
        """Of one token, unknown, very long, empty; with more lengths asked for than there are; nothing ends early."""
        for name in ('transformer', 'recurrent', 'simple', 'three levels'):
            model, _, vocab = self.model(name)
            model.output.bias.assign(tf.tensor_scatter_nd_update(model.output.bias, [[vocab.eos_id]], [-50.0]))
            predictor, longest = model.length_predictor, 60 if name == 'recurrent' else 280
            sources = [[vocab.eos_id], [5] * longest + [vocab.eos_id], [vocab.unk_id, vocab.eos_id], []]
            lengths = tf.constant([len(ids) for ids in sources])
            src, unit = tf.ragged.constant(sources, tf.int32).to_tensor(vocab.pad_id), predictor.unit
            told = []
            for ids in sources:
                lengths_told = [len(ids) + d for d in range(-5, 6)]
                if name == 'recurrent':  # whose length predictor rounds up
                    lengths_told = [max(unit, math.ceil(n / unit) * unit) for n in lengths_told]
                told.append({n for n in lengths_told if n > 0 and n % unit == 0})
            for decode in flowseq_decoding.MODES if name == 'transformer' else ('argmax', 'sample', 'iw'):
                with self.subTest(model=name, decode=decode):
                    options = DecodeOptions(decode=decode, nlen=99, ntr=1, tau=0.5, iw_k=2)
                    found = model.translate(src, tf.sequence_mask(lengths), tf.fill([4], 9), options)
                    self.assertTrue(np.isfinite(found.scores[:, 0]).all())
                    self.assertAllEqual(found.lengths[:, 0], tf.minimum(found.spans[:, 0], 9))
                    self.assertAllEqual(found.truncated[:, 0], found.spans[:, 0] > 9)
                    for i, possible in enumerate(told):
                        count = int(np.isfinite(found.scores[i]).sum())
                        self.assertEqual(count, 1 if decode == 'argmax' else len(possible))
                        self.assertLessEqual(set(found.spans[i, :count].numpy()), possible)
            empty = [tf.zeros([1, 0], kind) for kind in (tf.int32, tf.bool)]
            found = model.translate(*empty, tf.constant([9]), DecodeOptions(decode='argmax'))
            self.assertTrue(np.isfinite(found.scores).all())

    def test_pad_and_unknown_are_never_chosen_unless_asked_and_bos_never_at_all(self):
        model, _, vocab = self.model()
        self.assertEqual((vocab.pad_id, vocab.unk_id, vocab.bos_id), (0, 1, 2))
        model.output.bias.assign(tf.tensor_scatter_nd_update(model.output.bias, [[0], [1], [2]], [50.0, 60.0, 70.0]))
        batch = random_batch(self.random, vocab)
        found = self.translate(model, batch, decode='argmax')
        inside = tf.range(found.ids.shape[2]) < found.lengths[:, :, tf.newaxis]
        self.assertAllEqual(tf.reduce_any(inside & (found.ids < 3)), False)
        model.any_token = True
        found = self.translate(model, batch, decode='argmax')
        self.assertAllEqual(found.ids[0, 0, : found.lengths[0, 0]], [1] * int(found.spans[0, 0]))
        model.bos_id = None  # as in imported vocabularies: id 2 is a token like others
        found = self.translate(model, batch, decode='argmax')
        self.assertAllEqual(found.ids[0, 0, : found.lengths[0, 0]], [2] * int(found.spans[0, 0]))


if __name__ == '__main__':
    unittest.main()
