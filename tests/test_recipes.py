"""The recipes load, and their README names what there is."""

import json
import os
import re
import unittest

from sacrebleu.dataset import DATASETS

from sequencing.config import Config
from sequencing.config_files import load_config
from sequencing.options import from_dict, to_dict
from tests.toy import ROOT

FOLDER = os.path.join(ROOT, 'recipes')


class RecipeTest(unittest.TestCase):
    def test_every_recipe_survives_json_and_is_in_the_readme(self):
        with open(os.path.join(FOLDER, 'README.md')) as file:
            readme = file.read()
        commands = set(re.findall(r'--config_file recipes/(\w+)\.py --config (\w+)', readme))
        files = sorted(name for name in os.listdir(FOLDER) if name.endswith('.py'))
        self.assertEqual({f'{name}.py' for name, _ in commands}, set(files))
        for name, function in commands:
            config, _ = load_config(function, os.path.join(FOLDER, f'{name}.py'))
            self.assertEqual(from_dict(Config, json.loads(json.dumps(to_dict(config)))), config)
            self.assertEqual(os.path.basename(config.data.folder), name.replace('_', '-'))
        for test_set, pair in re.findall(r'sacrebleu -t (\S+) -l (\S+)', readme):
            self.assertIn(pair, DATASETS[test_set].langpairs)


if __name__ == '__main__':
    unittest.main()
