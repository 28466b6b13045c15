"""Text to ids and back: words, characters, SentencePiece models, and token lists made elsewhere.

New vocabularies have PAD 0, UNK 1, BOS 2, EOS 3. A list that comes with `<pad> <unk> <eos>` at 0, 1, 2 and no BOS (as
FlowSeq writes them) keeps its ids. Ids of a line hold no BOS and no EOS: whoever makes batches adds what a model needs.
"""

import hashlib
import io
import itertools
import json
import os
import random
from collections import Counter

import numpy as np

from sequencing.errors import UserError
from sequencing.text import atomic_file, check_file, read_lines

PAD, UNK, BOS, EOS = '<pad>', '<unk>', '<s>', '</s>'
SPECIAL = (PAD, UNK, BOS, EOS)
_ROLE = {PAD: 'pad', UNK: 'unk', BOS: 'bos', '<bos>': 'bos', EOS: 'eos', '<eos>': 'eos'}
_ORDERS = (('pad', 'unk', 'bos', 'eos'), ('pad', 'unk', 'eos'))  # ours, FlowSeq's
_SPACE = '\u2581'  # what SentencePiece writes for a space
_FORMAT = 1
_SAMPLE = 200_000  # lines that SentencePiece is trained on
_LONGEST_SAMPLED = 2000  # characters of a line that SentencePiece is trained on
_MOST_COUNTED = 4_000_000  # different words that are counted at a time
_TRAINER_THREADS = 8  # a constant, as the sums of its threads decide the last digits and with them the pieces


class Vocab:
    """A list of tokens.

    Args:
      tokens: list of str, by id. Without special tokens the four of ours are put before them; with special tokens
        they have to be `<pad> <unk> <s> </s>` or `<pad> <unk> <eos>` (`<bos>` and `</s>` are taken too), from id 0 on.
      delimiter: ' ' when white space parts tokens, '' when every character is a token.
      subword: how decoded tokens become text: 'none' joins them by the delimiter, 'bpe' glues `@@` to what follows
        (Sennrich et al., 2016), 'spm' glues all and reads U+2581 as a space. 'auto' looks at the tokens.
      source: where the tokens are from, for messages.
    Attributes:
      size: number of ids.
      pad_id, unk_id, bos_id, eos_id: int; `bos_id` is None where the vocabulary has none.
      tokens: list of str, by id.
    Raises:
      UserError: no tokens, duplicates, or special tokens at other ids.
    """

    kind = 'list'

    def __init__(self, tokens, delimiter=' ', subword='auto', source='token list'):
        tokens = list(tokens)
        if not tokens:
            raise UserError(f'{source}, line 1: there is no token in it. A token list has a token a line.')
        _refuse_duplicates(tokens, source)
        roles = _special_roles(tokens, source)
        if not roles:
            tokens, roles = [*SPECIAL, *tokens], _ORDERS[0]
        self.tokens, self.delimiter = tokens, delimiter
        ids = {name: roles.index(name) if name in roles else None for name in _ORDERS[0]}
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = (ids[name] for name in _ORDERS[0])
        self._special = {token: i for i, token in enumerate(tokens[: len(roles)])}
        self._ids = {token: i for i, token in enumerate(tokens) if token not in self._special}
        self.subword = _guess_subword(tokens, delimiter) if subword == 'auto' else subword
        self._silent = {self.pad_id, self.bos_id, self.eos_id}

    @property
    def size(self):
        return len(self.tokens)

    def __len__(self):
        return self.size

    def encode(self, line):
        """The ids of a line, `[n]` int32, neither BOS nor EOS among them; a blank line gives none."""
        return self.encode_flat([line])[0]

    def encode_lines(self, lines, threads=0):
        """The ids of each line, a list of `[n]` int32."""
        flat, lengths = self.encode_flat(lines, threads)
        return np.split(flat, np.cumsum(lengths)[:-1]) if len(lengths) else []

    def encode_flat(self, lines, threads=0):
        """The ids of all lines in a row.

        Args:
          lines: list of str.
          threads: of SentencePiece; 0 for all cores.
        Returns:
          flat: `[sum of lengths]` int32.
          lengths: `[len(lines)]` int32.
        """
        get, unknown = self._ids.get, self.unk_id
        cut = list if self.delimiter == '' else str.split
        cuts = [cut(line.strip()) for line in lines]
        lengths = np.fromiter(map(len, cuts), np.int32, len(cuts))
        flat = [get(token, unknown) for tokens in cuts for token in tokens]
        return np.array(flat, np.int32), lengths

    def decode(self, ids, keep_pad=False):
        """Raw text of `[n]` ids; BOS and EOS are left out, and PAD unless `keep_pad`."""
        return self.join(self.pieces(i for i in ids if i not in self._silent or keep_pad and i == self.pad_id))

    def join(self, pieces):
        """Raw text of tokens."""
        if self.subword == 'spm':
            return ''.join(pieces).replace(_SPACE, ' ').strip()
        text = self.delimiter.join(pieces)
        if self.subword == 'bpe':
            text = text.replace('@@ ', '').removesuffix('@@')
        return text

    def pieces(self, ids):
        """The token of each id, special ones included, as a list of str."""
        return [self.tokens[i] for i in ids]

    def ids_of(self, pieces):
        """The id of each token, special ones included and UNK for unknown ones, as `[n]` int32."""
        special = self._special
        return np.array([special.get(piece, self._ids.get(piece, self.unk_id)) for piece in pieces], np.int32)

    def ids_of_text(self):
        """A dict of the tokens that text may hold to their ids: all but the special ones."""
        return dict(self._ids)

    def content_key(self):
        """A hash of all that decides which ids a line gets."""
        return _hash(self.kind, self.delimiter, self.subword, *self.tokens)

    def save(self, folder, name, **notes):
        """Writes `<name>.tokens` and, when that is complete, `<name>.json` with `notes` in it."""
        self.save_as(os.path.join(folder, f'{name}.tokens'))
        self._save_description(folder, name, notes)

    def save_as(self, path):
        """Writes the tokens, one a line, as `from_file` reads them."""
        with atomic_file(path) as file:
            file.write(''.join(f'{token}\n' for token in self.tokens).encode(errors='replace'))

    def _save_description(self, folder, name, notes):
        description = dict(format=_FORMAT, kind=self.kind, delimiter=self.delimiter, subword=self.subword,
                           size=self.size, pad_id=self.pad_id, unk_id=self.unk_id, bos_id=self.bos_id,
                           eos_id=self.eos_id, content_key=self.content_key(), **notes)  # fmt: skip
        with atomic_file(os.path.join(folder, f'{name}.json')) as file:
            file.write((json.dumps(description, indent=2) + '\n').encode())

    @staticmethod
    def load(folder, name):
        """The vocabulary that `save` wrote.

        Raises:
          UserError: it is not there, not whole, or of a newer format.
        """
        description = read_description(folder, name)
        if description['kind'] == 'sentencepiece':
            vocab = SentencePieceVocab.from_file(os.path.join(folder, f'{name}.model'))
        else:
            path = os.path.join(folder, f'{name}.tokens')
            check_file(path, 'vocabulary')
            with open(path, 'rb') as file:
                tokens = file.read().decode().split('\n')[:-1]
            vocab = Vocab(tokens, description['delimiter'], description['subword'], source=path)
        if vocab.content_key() != description['content_key']:
            raise UserError(f'{os.path.join(folder, name)}: the vocabulary is not the one that was saved with this '
                            'model. Put the original file back.')  # fmt: skip
        return vocab

    @classmethod
    def from_file(cls, path, delimiter=' ', subword='auto'):
        """A token list made elsewhere: a token a line, what follows a tab on a line left out.

        Raises:
          UserError: with file and line: an empty list, an empty line, a duplicate, special tokens at other ids.
        """
        tokens = []
        for line in read_lines(path, 'token list'):
            token = '\t' if line[:1] == '\t' else line.partition('\t')[0]
            if not token:
                raise UserError(f'{path}, line {len(tokens) + 1}: is empty. A token list has a token a line.')
            tokens.append(token)
        return cls(tokens, delimiter, subword, source=os.fspath(path))


class SentencePieceVocab(Vocab):
    """A SentencePiece model (Kudo and Richardson, 2018): raw text in, raw text out.

    Args:
      model: bytes of the model file.
      source: where they are from, for messages.
    """

    kind = 'sentencepiece'
    delimiter, subword = ' ', 'spm'

    def __init__(self, model, source='SentencePiece model'):
        import sentencepiece

        self.model = model
        try:
            self._processor = sentencepiece.SentencePieceProcessor(model_proto=model)
        except RuntimeError as error:
            raise UserError(f'{source}: is not a SentencePiece model.') from error
        self.tokens = [self._processor.id_to_piece(i) for i in range(self._processor.vocab_size())]
        ids = (self._processor.pad_id(), self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id())
        if ids != (0, 1, 2, 3):
            raise UserError(
                f'{source}: PAD, UNK, BOS and EOS have the ids {ids} (-1 for none), and have to have 0, 1, 2, 3. Train '
                'the model with --pad_id=0 --unk_id=1 --bos_id=2 --eos_id=3, or with tools/build_vocab.py.'
            )
        self.pad_id, self.unk_id, self.bos_id, self.eos_id = ids
        self._special, self._ids = {}, {token: i for i, token in enumerate(self.tokens)}
        self._silent = {self.pad_id, self.bos_id, self.eos_id}

    @classmethod
    def from_file(cls, path):
        """Reads a model file.

        Raises:
          UserError: it is missing, is no model, or has other special ids than ours.
        """
        check_file(path, 'SentencePiece model')
        with open(path, 'rb') as file:
            return cls(file.read(), source=os.fspath(path))

    def encode_flat(self, lines, threads=0):
        """As `Vocab.encode_flat`; lines are cut by several threads at once."""
        lines = [line.strip() for line in lines]
        threads = threads or os.cpu_count() or 1
        encode = self._processor.encode
        try:
            ids = [encode(lines[0])] if len(lines) == 1 else encode(lines, num_threads=threads)
        except (RuntimeError, TypeError):  # half a surrogate pair, which a str can hold but no file
            whole = [line.encode('utf-16', 'surrogatepass').decode('utf-16', 'replace') for line in lines]
            ids = encode(whole, num_threads=threads)
        lengths = np.fromiter(map(len, ids), np.int32, len(ids))
        return np.fromiter(itertools.chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths

    def decode(self, ids, keep_pad=False):
        """As `Vocab.decode`; unknown tokens show as U+2047, PAD as nothing in any case."""
        return self._processor.decode([int(i) for i in ids if i not in self._silent]).strip()

    def content_key(self):
        """As `Vocab.content_key`."""
        return hashlib.sha256(b'sentencepiece\0' + self.model).hexdigest()

    def save(self, folder, name, **notes):
        """Writes `<name>.model` and, when that is complete, `<name>.json` with `notes` in it."""
        self.save_as(os.path.join(folder, f'{name}.model'))
        self._save_description(folder, name, notes)

    def save_as(self, path):
        """Writes the model, as `from_file` and SentencePiece's own tools read it."""
        with atomic_file(path) as file:
            file.write(self.model)


def read_description(folder, name):
    """The `<name>.json` beside a saved vocabulary, as a dict.

    Raises:
      UserError: it is missing, damaged, or of a newer format.
    """
    path = os.path.join(folder, f'{name}.json')
    check_file(path, 'description of the vocabulary')
    try:
        with open(path, encoding='utf-8') as file:
            description = json.load(file)
        newer = description['format'] > _FORMAT
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f'{path}: is damaged: {error}.') from error
    if newer:
        raise UserError(f'{path}: has format {description["format"]}, and this version reads {_FORMAT}. Update it.')
    return description


def _hash(*texts):
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode(errors='surrogatepass')
        digest.update(len(encoded).to_bytes(8, 'little') + encoded)
    return digest.hexdigest()


def _special_roles(tokens, source):
    """The roles of the first ids, or () for a list without special tokens."""
    found = {i: _ROLE[token] for i, token in enumerate(tokens) if token in _ROLE}
    if not found:
        return ()
    for order in _ORDERS:
        if found == dict(enumerate(order)):
            return order
    order = _ORDERS[0] if 'bos' in found.values() or len(found) > 3 else _ORDERS[1]
    wrong = next((i for i, role in found.items() if i >= len(order) or order[i] != role), None)
    at = max(found) if wrong is None else wrong
    raise UserError(
        f'{source}, line {at + 1}: {tokens[at]!r} has id {at}. A list with special tokens starts with '
        f'{" ".join(SPECIAL)} (or {PAD} {UNK} <eos> where there is no BOS) and has them nowhere else. Put them there, '
        'or take them out: they are added.'
    )


def _refuse_duplicates(tokens, source):
    if len(set(tokens)) == len(tokens):
        return
    lines = {}
    for line, token in enumerate(tokens, start=1):
        if token in lines:
            raise UserError(f'{source}, line {line}: {token!r} is there already, in line {lines[token]}.')
        lines[token] = line


def _guess_subword(tokens, delimiter):
    if delimiter == ' ' and any(token.endswith('@@') for token in tokens):
        return 'bpe'
    if delimiter == ' ' and any(token.startswith(_SPACE) for token in tokens):
        return 'spm'
    return 'none'


class VocabMaker:
    """Makes a vocabulary from lines that are given one at a time, in bounded memory, the same on any machine.

    Args:
      kind: 'words', 'characters', 'unigram' or 'bpe'.
      size: ids of the vocabulary, the four special ones included; it may come out smaller when the text is small.
      source: where the lines are from, for messages.
    """

    def __init__(self, kind, size, source='training text'):
        self.kind, self.size, self.source = kind, size, source
        self._random = random.Random(1)
        self._seen, self._sample, self._counts = 0, [], Counter()

    def add(self, line):
        """Takes a line into account."""
        if self.kind in ('words', 'characters'):
            self._counts.update(line.split() if self.kind == 'words' else line.strip())
            if len(self._counts) > _MOST_COUNTED:  # the rare half makes room; what is left is far above any size
                self._counts = Counter(dict(self._counts.most_common(_MOST_COUNTED // 2)))
        elif not line.isspace() and (line := line[:_LONGEST_SAMPLED]):
            self._seen += 1  # reservoir sampling: every line so far has the same chance to be in the sample
            if len(self._sample) < _SAMPLE:
                self._sample.append(line)
            elif (place := int(self._random.random() * self._seen)) < _SAMPLE:
                self._sample[place] = line

    def make(self):
        """The vocabulary.

        Raises:
          UserError: the text is blank, or has more characters than the vocabulary may have tokens.
        """
        if not self._sample and not self._counts:
            raise UserError(f'{self.source}: there is no text in it to make a vocabulary from.')
        if self._counts:
            ranked = sorted((token for token in self._counts if token not in _ROLE),
                            key=lambda token: (-self._counts[token], token))  # fmt: skip
            delimiter = ' ' if self.kind == 'words' else ''
            return Vocab([*SPECIAL, *ranked[: self.size - len(SPECIAL)]], delimiter, 'none', self.source)
        return SentencePieceVocab(self._train_sentencepiece(), self.source)

    def _train_sentencepiece(self):
        import sentencepiece

        characters, model = Counter(), io.BytesIO()
        for line in self._sample:
            characters.update(line)
        try:
            sentencepiece.SentencePieceTrainer.train(
                sentence_iterator=iter(self._sample),
                model_writer=model,
                model_type=self.kind,
                vocab_size=self.size,
                hard_vocab_limit=False,
                max_sentence_length=4 * _LONGEST_SAMPLED,  # in bytes
                pad_id=0,
                unk_id=1,
                bos_id=2,
                eos_id=3,
                normalization_rule_name='identity',
                character_coverage=_coverage(characters, self.size),
                seed_sentencepiece_size=max(100_000, 10 * self.size),  # more took longer and cut no better
                num_threads=_TRAINER_THREADS,
                minloglevel=3,
            )
        except RuntimeError as error:
            raise UserError(
                f'{self.source}: no {self.kind} vocabulary of size {self.size} can be made from it ({len(characters)} '
                f'different characters in {len(self._sample)} lines): {str(error).split("] ")[-1]}'
            ) from error
        return model.getvalue()


def _coverage(counts, size):
    """The share of characters that get a token: all, unless so many are different that pieces would have no room."""
    if 8 * len(counts) <= size:
        return 1.0
    return min(0.9995, max(0.98, sum(count for _, count in counts.most_common(size // 2)) / counts.total()))
