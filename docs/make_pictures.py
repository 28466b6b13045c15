"""Draws the pictures of the pages, `pictures/*.svg`; each function is a picture and its first line says what it shows.

python docs/make_pictures.py
"""

import math
import os
import random
import sys

from svg import BLUE, GREEN, GREY, PALE, RED, YELLOW, Picture

FOLDER = os.path.join(os.path.dirname(os.path.abspath(__file__)), 'pictures')


def shapes():
    """Two pairs in a batch: ids, masks, what a decoder is fed"""
    page = Picture(shapes.__doc__, 700, 196)
    sides = (
        ('src_ids, src_mask  [B, S]', 30, (('a', 'b', 'c', 'EOS', 'PAD'), ('d', 'e', 'f', 'g', 'EOS'))),
        ('decoder is fed  [B, T]', 290, (('BOS', 'x', 'y', 'EOS'), ('BOS', 'z', 'EOS', 'PAD'))),
        ('trg_ids, trg_mask  [B, T]', 500, (('x', 'y', 'EOS', 'PAD'), ('z', 'EOS', 'PAD', 'PAD'))),
    )
    for words, x, rows in sides:
        page.words(x, 24, words, anchor='start', bold=True)
        for r, row in enumerate(rows):
            for t, token in enumerate(row):
                colour = GREY if token == 'PAD' else YELLOW if token in ('BOS', 'EOS') else BLUE
                page.box(x + 44 * t, 44 + 34 * r, 42, 30, token, colour)
    for t in range(4):
        page.words(500 + 44 * t + 21, 126, f't = {t}', colour=PALE)
        page.words(290 + 44 * t + 21, 126, f't = {t}', colour=PALE)
    page.words(30, 158, 'Grey: mask False, padding; it changes nothing.', anchor='start')
    page.words(30, 178, 'What a decoder says after reading step t is compared with trg_ids at step t.', anchor='start')
    return page


def data():
    """Batches of 8 pairs cut from pairs as they come, and from pairs sorted by length: grey is padding"""
    page = Picture(data.__doc__, 700, 236)
    draw = random.Random(2)
    lengths = [3 + int(draw.lognormvariate(2.0, 0.6)) for _ in range(32)]
    orders = ('as they come', lengths), ('sorted inside a window', sorted(lengths))
    for column, (words, order) in enumerate(orders):
        x, padding, room = 20 + 350 * column, 0, 0
        for first in range(0, len(order), 8):
            batch = order[first : first + 8]
            longest = max(batch)
            padding, room = padding + 8 * longest - sum(batch), room + 8 * longest
            for row, length in enumerate(batch):
                y = 46 + first * 5.5 + 4.6 * row
                page.box(x, y, 9 * longest, 4, colour=GREY)
                page.box(x, y, 9 * length, 4)
        page.words(x, 24, f'{words}: {100 * padding / room:.0f}% padding', anchor='start', bold=True)
    return page


def rnn():
    """A bidirectional encoder, and a decoder that attends to its outputs at every step"""
    page = Picture(rnn.__doc__, 700, 330)
    outputs = []
    for s in range(4):
        x = 30 + 74 * s
        token = page.box(x, 284, 54, 30, f'x{"₁₂₃₄"[s]}', YELLOW)
        forwards, backwards = page.box(x, 226, 54, 30, '→', GREEN), page.box(x, 178, 54, 30, '←', RED)
        output = page.box(x, 116, 54, 34, f'h{"₁₂₃₄"[s]}')
        page.arrow(token.top, forwards.bottom)
        page.line((x + 8, 284), (x - 5, 270), (x - 5, 194), (x, 194))
        page.line((x + 54, 241), (x + 62, 231), (x + 62, 140), (x + 54, 136))
        page.arrow(backwards.top, output.bottom)
        if s:
            page.arrow((x - 20, 246), (x, 246))
            page.arrow((x, 200), (x - 20, 200))
        outputs.append(output)
    page.words(164, 24, 'encoder: outputs [forwards, backwards]', bold=True)
    page.words(520, 24, 'decoder, one step', bold=True)
    attention = page.box(390, 116, 90, 34, 'attention')
    state = page.box(520, 200, 76, 34, 'state sₜ', GREEN)
    token = page.box(520, 284, 76, 30, 'yₜ₋₁', YELLOW)
    page.box(520, 52, 150, 34, 'features → logits of yₜ')
    page.line((57, 116), (57, 96), (279, 96))
    for box in outputs[1:]:
        page.line(box.top, (box.top[0], 96))
    page.arrow((279, 96), (340, 96), (340, 133), attention.left)
    page.arrow(token.top, state.bottom)
    page.arrow((490, 217), state.left)
    page.words(486, 217, 'sₜ₋₁, cₜ₋₁', anchor='end')
    page.arrow((530, 200), (530, 170), (435, 170), attention.bottom)
    page.words(486, 182, 'query', colour=PALE)
    page.arrow((480, 133), (545, 133), (545, 86))
    page.words(513, 123, 'cₜ')
    page.arrow((580, 200), (580, 86))
    page.words(592, 150, 'sₜ', anchor='start')
    page.arrow((596, 299), (640, 299), (640, 86))
    page.words(648, 190, 'yₜ₋₁', anchor='start')
    return page


def attention():
    """Energies of four real steps and one of padding, their softmax, and the mean of values under it"""
    page = Picture(attention.__doc__, 700, 250)
    energies = (0.4, 2.1, 1.2, -0.5)
    exps = [math.exp(e) for e in energies]
    query = page.box(20, 96, 80, 34, 'query q', GREEN)
    context = page.box(590, 96, 90, 34, 'context c', GREEN)
    for column, words in ((215, 'keys'), (315, 'energies e'), (425, 'weights α'), (525, 'values')):
        page.words(column, 20, words, bold=True)
    for s in range(5):
        y, real = 40 + 40 * s, s < 4
        colour = BLUE if real else GREY
        name = '₁₂₃₄₅'[s]
        key = page.box(190, y, 50, 28, f'k{name}', colour)
        value = page.box(500, y, 50, 28, f'v{name}', colour)
        if real:
            weight = exps[s] / sum(exps)
            page.line(query.right, key.left, colour=PALE)
            page.words(315, y + 14, f'{energies[s]:.1f}')
            page.box(390, y + 4, 100 * weight, 20, colour=YELLOW)
            page.words(394 + 100 * weight, y + 14, f'{weight:.2f}', anchor='start')
            page.line(value.right, context.left, colour=PALE, width=0.6 + 4 * weight)
        else:
            page.words(315, y + 14, 'padding', colour=PALE)
            page.words(394, y + 14, '0', anchor='start', colour=PALE)
    return page


def transformer():
    """An encoder layer and a decoder layer with normalisation in front of each part (norm='pre')"""
    page = Picture(transformer.__doc__, 700, 476)
    encoder = ('norm', GREY), ('self-attention', GREEN), ('+', YELLOW), ('norm', GREY), ('feed-forward', BLUE), (
        '+', YELLOW)  # fmt: skip
    source = ('norm', GREY), ('attention to the source', RED), ('+', YELLOW)
    decoder = ('norm', GREY), ('self-attention, causal', GREEN), ('+', YELLOW), *source, *encoder[3:]
    memory, reader = None, None
    for words, x, parts, below in (
        ('encoder, its layer', 60, encoder, 'embedded source + positions'),
        ('decoder, its layer', 400, decoder, 'embedded target, shifted, + positions'),
    ):
        page.words(x + 90, 16, words, bold=True)
        y = 440
        page.words(x + 90, y + 18, below)
        point, skip = (x + 90, y + 6), (x + 90, y)
        for name, colour in parts:
            size = 24 if name == '+' else 180
            box = page.box(x + 90 - size / 2, y - 36, size, 24, name, colour)
            page.arrow(point, box.bottom)
            if name == '+':
                page.arrow(skip, (x - 12, skip[1]), (x - 12, box.left[1]), box.left)
                skip = x + 90, y - 42
            reader = box if name.startswith('attention to') else reader
            point, y = box.top, y - 42
        top = page.box(x, y - 36, 180, 24, 'norm, behind the last layer', GREY)
        page.arrow(point, top.bottom)
        memory = memory or top
    page.arrow(memory.right, (330, memory.right[1]), (330, reader.left[1]), reader.left)
    page.words(324, 216, 'keys,\nvalues', anchor='end')
    return page


def cnn():
    """What an output sees through two layers of width 3: around it in the encoder, up to it in the decoder"""
    page = Picture(cnn.__doc__, 700, 236)
    for column, (words, offsets) in enumerate((('encoder', (-1, 0, 1)), ('decoder', (-2, -1, 0)))):
        x0, top = 40 + 340 * column, (3, 5)[column]
        seen = [{top}]
        for _ in range(2):
            seen.append({t + offset for t in seen[-1] for offset in offsets})
        for level, name in enumerate(('layer 2', 'layer 1', 'embedded')):
            y = 48 + 62 * level
            page.words(x0 + 56, y + 13, name, anchor='end', colour=PALE)
            for t in range(7):
                if level < 2 and t in seen[level]:
                    for offset in offsets:
                        if 0 <= t + offset < 7:
                            page.line((x0 + 78 + 34 * t, y + 26), (x0 + 78 + 34 * (t + offset), y + 62), colour=PALE)
                page.box(x0 + 64 + 34 * t, y, 28, 26, colour=BLUE if t in seen[level] else GREY)
        page.words(x0 + 64, 24, words, anchor='start', bold=True)
    page.words(40, 222, 'Frames beyond the ends, and padding, are zero. n layers of width w see 1 + n (w - 1) steps.',
               anchor='start')  # fmt: skip
    return page


def training():
    """Learning rates of the four schedules, 1,000 updates of warm-up among 10,000"""
    from sequencing.config import TrainConfig
    from sequencing.optimizers import LearningRate

    page = Picture(training.__doc__, 700, 250)
    left, bottom, width, height = 50, 214, 500, 180
    page.arrow((left, bottom), (left, 16))
    page.arrow((left, bottom), (left + width + 20, bottom))
    page.words(left - 8, bottom - height, 'peak', anchor='end')
    page.words(left - 8, bottom, '0', anchor='end')
    for update in (1000, 10000):
        page.words(left + width * update / 10000, bottom + 18, f'{update:,}')
    for schedule, colour, lower in (
        ('constant', '#3d85c6', 0),
        ('inverse_sqrt', '#6aa84f', 0),
        ('cosine', '#cc0000', 6),
        ('exponential', '#b45f06', -6),
    ):
        rate = LearningRate(TrainConfig(learning_rate=1.0, schedule=schedule, warmup_steps=1000, max_steps=10000))
        heights = [bottom - height * float(rate(update)) for update in range(0, 10001, 100)]
        page.line(*((left + width * i / 100, y) for i, y in enumerate(heights)), colour=colour, width=2)
        page.words(left + width + 24, heights[-1] + lower, schedule, anchor='start', colour=colour)
    return page


def many_machines():
    """Replicas sum losses and gradients of their shares; every one makes the same update of the whole batch"""
    page = Picture(many_machines.__doc__, 700, 210)
    batch = page.box(16, 72, 80, 56, 'one batch', YELLOW)
    total = page.box(400, 62, 120, 76, 'all-reduce:\nsums of all\nreplicas', RED)
    for replica in range(3):
        y = 16 + 62 * replica
        share = page.box(140, y, 70, 44, f'share {replica + 1}')
        sums = page.box(240, y, 116, 44, 'sums of losses,\ngradients', GREEN)
        update = page.box(566, y, 118, 44, 'divide, check,\nclip, update', GREEN)
        page.arrow(batch.right, share.left)
        page.arrow(share.right, sums.left)
        page.arrow(sums.right, total.left)
        page.arrow(total.right, update.left)
    page.words(350, 200, 'Tokens are summed too, so the update is that of one replica with the whole batch.')
    return page


def decoding():
    """The loop: the model scores next tokens, the feedback chooses and says what is read next"""
    page = Picture(decoding.__doc__, 700, 224)
    source = page.box(16, 92, 110, 40, 'memory of\nthe source')
    step = page.box(190, 84, 130, 56, 'model.step', GREEN, bold=True)
    choose = page.box(452, 84, 130, 56, 'feedback.next', YELLOW, bold=True)
    result = page.box(608, 162, 84, 40, 'Hypotheses')
    page.arrow(source.right, step.left)
    page.arrow(step.right, choose.left)
    page.words(386, 98, 'logits [B, W, N]')
    page.words(386, 126, 'state')
    page.arrow(choose.top, (517, 40), (255, 40), step.top)
    page.words(386, 28, 'next ids [B, W]: reference, likeliest, drawn, or the beam')
    page.arrow((490, 140), (490, 182), (282, 182), (282, 140))
    page.words(386, 170, 'parents: which hypotheses')
    page.words(386, 196, 'go on (model.reorder)')
    page.arrow(choose.right, (650, 112), result.top)
    page.words(612, 100, 'done?')
    return page


def flows():
    """A coupling, and how three levels split off noise and fold time into depth"""
    page = Picture(flows.__doc__, 700, 300)
    page.words(20, 20, 'A coupling (halves, up)', anchor='start', bold=True)
    first, second = page.box(20, 60, 60, 40, 'x₁'), page.box(20, 150, 60, 40, 'x₂', GREEN)
    network = page.box(112, 96, 110, 34, 'network: s, t', YELLOW)
    transform = page.box(124, 150, 86, 40, 'x₂ · s + t', GREY)
    ends = page.box(254, 60, 60, 40, 'y₁ = x₁'), page.box(254, 150, 60, 40, 'y₂', GREEN)
    page.arrow(first.right, ends[0].left)
    page.arrow((100, 80), (100, 113), network.left)
    page.arrow(network.bottom, transform.top)
    page.arrow(second.right, transform.left)
    page.arrow(transform.right, ends[1].left)
    page.arrow((226, 236), (238, 236), (238, 113), network.right)
    page.words(222, 236, 'source states, mask', anchor='end')
    page.words(20, 276, 'Backwards the network reads y₁, the same as x₁:\nno inverse of it is needed.', anchor='start')
    page.words(370, 20, 'Levels, latent z (left) to noise (right)', anchor='start', bold=True)
    x, y, width, height = 370, 54, 36, 120
    for level in range(3):
        last = level == 2
        page.box(x, y, width, height)
        steps = page.box(x + width + 6, y, 34, height, 'steps', GREEN)
        page.words(steps.top[0], y - 12, f'level {level}', colour=PALE)
        x = steps.right[0] + 6
        page.box(x, y, width, height, colour=GREY)
        if not last:
            page.box(x, y, width, height / 2)
            page.arrow((x + width, y + height / 4), (x + width + 18, y + height / 4))
            x, width = x + width + 18, width / 2
    for row, words in enumerate((
        'Height: channels; width: steps; grey: done, noise.',
        'Here one channel in two is done after a level; of',
        'the others, two neighbouring steps become one',
        'of twice the channels.',
    )):  # fmt: skip
        page.words(370, 200 + 18 * row, words, anchor='start')
    return page


def flowseq():
    """FlowSeq: in training z comes from the posterior, in translation from noise through the flow, backwards"""
    page = Picture(flowseq.__doc__, 700, 306)
    source = page.box(16, 236, 90, 36, 'source x', YELLOW)
    encoder = page.box(16, 156, 90, 40, 'encoder')
    length = page.box(160, 222, 130, 40, 'length predictor\np(T | x)', RED)
    flow = page.box(160, 140, 130, 56, 'flow\np(z | x)', GREEN)
    page.box(160, 40, 130, 36, 'noise ε ~ N(0, I)', GREY)
    latent = page.box(360, 150, 90, 36, 'latent z', GREY)
    posterior = page.box(340, 40, 130, 40, 'posterior\nq(z | x, y)', RED)
    decoder = page.box(512, 146, 90, 44, 'decoder\np(y | z, x)')
    target = page.box(636, 150, 54, 36, 'y', YELLOW)
    page.arrow(source.top, encoder.bottom)
    page.arrow(encoder.right, (134, 176), flow.left)
    page.arrow((134, 176), (134, 242), length.left)
    page.arrow((134, 176), (134, 292), (557, 292), decoder.bottom)
    page.arrow((134, 176), (134, 110), (375, 110), (375, 80))
    page.arrow((262, 76), (262, 140))
    page.arrow((194, 140), (194, 76))
    page.words(188, 94, 'forward', anchor='end', colour=PALE)
    page.words(268, 94, 'inverse', anchor='start', colour=PALE)
    page.arrow(flow.right, latent.left)
    page.words(325, 160, 'translate', colour=PALE)
    page.arrow((428, 80), (428, 150))
    page.words(434, 116, 'train', anchor='start', colour=PALE)
    page.arrow(latent.right, decoder.left)
    page.arrow(decoder.right, target.left)
    page.arrow(target.top, (663, 60), posterior.right)
    page.words(296, 242, 'how many positions z has', anchor='start', colour=PALE)
    return page


def flow_decoding():
    """Two lengths with two latents each make four candidates, among which one is chosen (nlen 2, ntr 2)"""
    page = Picture(flow_decoding.__doc__, 700, 226)
    source = page.box(16, 92, 90, 40, 'source', YELLOW)
    choice = page.box(570, 76, 116, 72, 'iw: estimate\nnpd: other model\nmbr: agreement', GREEN)
    for n in range(2):
        length = page.box(146, 44 + 96 * n, 104, 40, ('likeliest T', 'second T')[n], RED)
        page.arrow(source.right, length.left)
        for r in range(2):
            y = 14 + 96 * n + 52 * r
            latent = page.box(290, y, 110, 36, ('z, no noise', 'z, noise × τ')[r], GREY)
            output = page.box(440, y, 90, 36, f'candidate {2 * n + r + 1}')
            page.arrow(length.right, latent.left)
            page.arrow(latent.right, output.left)
            page.arrow(output.right, choice.left)
    page.words(16, 212, 'argmax is the first row alone: one length, no noise, every position its likeliest token.',
               anchor='start')  # fmt: skip
    return page


def exports():
    """From a model folder to the four forms that run elsewhere"""
    page = Picture(exports.__doc__, 700, 224)
    folder = page.box(16, 84, 110, 48, 'model folder', YELLOW)
    for n, (tool, made, engine) in enumerate((
        ('ckpt2npz.py', 'model.npz', 'NumPy'),
        ('export_savedmodel.py', 'SavedModel', 'TensorFlow, Serving'),
        ('export_tflite.py', 'model.tflite', 'LiteRT, phones'),
        ('export_ctranslate2.py', 'model.bin', 'CTranslate2'),
    )):  # fmt: skip
        y = 12 + 52 * n
        how = page.box(176, y, 160, 36, tool, GREY)
        file = page.box(376, y, 110, 36, made)
        runs = page.box(526, y, 158, 36, engine, GREEN)
        page.arrow(folder.right, how.left)
        page.arrow(how.right, file.left)
        page.arrow(file.right, runs.left)
    return page


def flow_speed():
    """Milliseconds for one sentence against the length of the output: FlowSeq by argmax, Transformers by beam 5"""
    page = Picture(flow_speed.__doc__, 730, 330)
    left, right, top, bottom = 80, 400, 20, 280
    lengths = 8, 16, 32, 64
    curves = (  # as `benchmarks/flow_rivals.py` measured them; benchmarks/RESULTS.md has them, too
        ('Transformer 6 + 6, ours, float32', (105.4, 234.5, 477.4, 858.3), '#990000'),
        ('Transformer 6 + 6, CTranslate2, int8', (56.9, 111.3, 230.0, 478.4), '#e06666'),
        ('one-layer decoder, CTranslate2, int8', (12.2, 20.2, 34.6, 78.2), '#e69138'),
        ('FlowSeq, TensorFlow, float32', (57.4, 65.0, 77.8, 104.5), '#0b5394'),
        ('FlowSeq, LiteRT, float32', (22.2, 34.3, 50.7, 90.6), '#3d85c6'),
        ('FlowSeq, LiteRT, int8', (10.2, 15.6, 25.5, 53.4), '#6aa84f'),
    )

    def place(length, ms):
        across = math.log(length / lengths[0]) / math.log(lengths[-1] / lengths[0])
        return left + across * (right - left), bottom - math.log10(ms / 10) / 2 * (bottom - top)

    for ms in (10, 30, 100, 300, 1000):
        page.line(place(lengths[0], ms), place(lengths[-1], ms), colour=PALE, width=0.5)
        page.words(left - 8, place(lengths[0], ms)[1], f'{ms} ms', anchor='end')
    for length in lengths:
        page.words(place(length, 10)[0], bottom + 16, str(length))
    page.words((left + right) / 2, bottom + 36, 'tokens')
    for row, (words, times, colour) in enumerate(curves):
        page.line(*map(place, lengths, times), colour=colour, width=2)
        page.line((430, 60 + 30 * row), (454, 60 + 30 * row), colour=colour, width=2)
        page.words(462, 60 + 30 * row, words, anchor='start')
    return page


PICTURES = (
    shapes, data, rnn, attention, transformer, cnn, training, many_machines, decoding, flows, flowseq, flow_decoding,
    flow_speed, exports,
)  # fmt: skip


if __name__ == '__main__':
    sys.path.insert(0, os.path.dirname(os.path.dirname(FOLDER)))
    for picture in PICTURES:
        with open(os.path.join(FOLDER, f'{picture.__name__}.svg'), 'w', encoding='utf-8') as out:
            out.write(str(picture()))
