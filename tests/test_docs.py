"""The documentation says what is: its page of commands is up to date, its links lead somewhere, its names exist."""

import dataclasses
import glob
import importlib
import os
import re
import sys
import typing
import unittest
from unittest import mock

from sequencing.config import Config
from tests.toy import ROOT

DOCS = os.path.join(ROOT, 'docs')
PAGES = sorted(glob.glob(os.path.join(DOCS, '*.md')))
BLOCK = re.compile(r'^```.*?^```$', re.MULTILINE | re.DOTALL)
FILES = re.compile(r'(?<![\w/])((?:tools|sequencing|flow_layers|sequencing_np|tests|docs)/\w+\.py)\b')
FIELDS = re.compile(r'(?:`|set )((?:data|train|decode|model)\.[a-z_0-9]+(?:\.[a-z_0-9]+)*)')
NO_FIELDS = {'model.npz', 'model.tflite', 'model.pt'} | {
    f'model.{method}' for method in ('loss', 'translate', 'step', 'reorder', 'encode', 'features')
}  # files and methods


def text_of(path):
    with open(path, encoding='utf-8') as file:
        return file.read()


def what_is_here(path):
    """The text of a page; of the tables of a page on porting only the last column."""
    lines = text_of(path).split('\n')
    if os.path.basename(path).startswith('porting'):
        lines = [line.split(' | ')[-1] if line.startswith('|') else line for line in lines]
    return '\n'.join(lines)


def field_names(kind=Config, prefix=''):
    """Every field of the configuration as it is named with --set, of all kinds of parts."""
    for name, hint in typing.get_type_hints(kind).items():
        yield prefix + name
        kinds = [k for k in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(k)]
        for inner in kinds:
            yield from field_names(inner, f'{prefix}{name}.')


def script(name):
    """A script of the folder, as a module."""
    with mock.patch.object(sys, 'path', [DOCS, *sys.path]):
        return importlib.import_module(name)


class DocsTest(unittest.TestCase):
    def test_the_page_of_commands_is_what_help_says(self):
        same = text_of(os.path.join(DOCS, 'commands.md')) == script('make_commands').page()
        self.assertTrue(same, 'docs/commands.md is out of date: run `python docs/make_commands.py`')

    def test_pictures_are_what_the_script_draws_and_stand_on_their_page(self):
        drawn = {picture.__name__: picture for picture in script('make_pictures').PICTURES}
        there = {os.path.basename(path)[:-4] for path in glob.glob(os.path.join(DOCS, 'pictures', '*'))}
        self.assertEqual(there, set(drawn))
        for name, picture in drawn.items():
            same = text_of(os.path.join(DOCS, 'pictures', f'{name}.svg')) == str(picture())
            self.assertTrue(same, f'docs/pictures/{name}.svg is out of date: run `python docs/make_pictures.py`')
            self.assertIn(f'![{picture.__doc__}](pictures/{name}.svg)', text_of(os.path.join(DOCS, f'{name}.md')))

    def test_every_part_has_a_picture_and_its_formulas(self):
        index = text_of(os.path.join(DOCS, 'index.md'))
        _, parts, flows, *_ = re.split(r'^(?:The parts|Flow models|Export).*$', index, flags=re.MULTILINE)
        pages = re.findall(r'\((\w+\.md)\)', parts + flows)
        self.assertGreater(len(pages), 10)
        for page in pages:
            text = text_of(os.path.join(DOCS, page))
            self.assertIn('](pictures/', text, page)
            if page != 'shapes.md':  # shapes are in its tables
                self.assertIn('$$', text, page)

    def test_every_command_shows_how_it_is_called(self):
        _, *sections = re.split(r'^## ', text_of(os.path.join(DOCS, 'commands.md')), flags=re.MULTILINE)
        self.assertGreater(len(sections), 15)
        for section in sections:
            self.assertIn(f'python {section.split()[0]} --', section.split('```')[1])

    def test_links_lead_somewhere(self):
        for path in PAGES:
            for target in re.findall(r'\]\(([^)#]+)[^)]*\)', BLOCK.sub('', text_of(path))):
                if not target.startswith('http'):
                    self.assertTrue(os.path.exists(os.path.join(DOCS, target)), f'{path}: {target}')

    def test_every_page_is_in_the_index(self):
        index = text_of(os.path.join(DOCS, 'index.md'))
        for path in PAGES:
            name = os.path.basename(path)
            if name != 'index.md':
                self.assertIn(f'({name})', index)
                self.assertIn(f'\n{name[:-3]}\n', index)

    def test_the_chinese_tutorial_has_the_same_blocks_sections_and_links(self):
        pages = [text_of(os.path.join(DOCS, name)) for name in ('tutorial.md', 'tutorial.zh.md')]
        english, chinese = map(BLOCK.findall, pages)
        self.assertGreater(len(english), 10)
        self.assertEqual(chinese, english)
        for what in (r'^#+ (?:\d+\.)?', r'\]\((?!tutorial)([^)]+)\)', r'`[^`\n]+`'):
            english, chinese = (re.findall(what, BLOCK.sub('', page), re.MULTILINE) for page in pages)
            if what.startswith('`'):  # names: the order of words differs, and so may theirs
                english, chinese = sorted(set(english)), sorted(set(chinese))
            self.assertEqual(chinese, english)

    def test_files_that_are_named_exist(self):
        for path in PAGES:
            for name in FILES.findall(what_is_here(path)):
                self.assertTrue(os.path.exists(os.path.join(ROOT, name)), f'{path}: {name}')

    def test_fields_that_are_named_exist(self):
        fields = set(field_names())
        for path in PAGES:
            for name in set(FIELDS.findall(what_is_here(path))) - NO_FIELDS:
                self.assertIn(name, fields, path)


if __name__ == '__main__':
    unittest.main()
