"""The recipes load, their README names what there is, and the job scripts start what they say."""

import json
import os
import re
import stat
import subprocess
import unittest
from unittest import mock

from sacrebleu.dataset import DATASETS

from sequencing.config import Config
from sequencing.config_files import load_config
from sequencing.distribution import find_job
from sequencing.options import from_dict, to_dict
from tests.support import FolderTest
from tests.toy import ROOT

FOLDER = os.path.join(ROOT, 'recipes')


class RecipeTest(unittest.TestCase):
    def test_every_recipe_survives_json_and_is_in_the_readme(self):
        with open(os.path.join(FOLDER, 'README.md')) as file:
            readme = file.read()
        commands = set(re.findall(r'--config_file recipes/(\w+\.py) --config (\w+)', readme))
        names = sorted(name for name in os.listdir(FOLDER) if name.endswith('.py'))
        self.assertEqual({name for name, _ in commands}, set(names))
        for name in names:
            with open(os.path.join(FOLDER, name)) as file:
                functions = re.findall(r'^def (config_\w+)', file.read(), re.M)
            self.assertLessEqual({function for file, function in commands if file == name}, set(functions))
            for function in functions:
                self.assertRegex(readme, rf'\b{function}\b')
                config, _ = load_config(function, os.path.join(FOLDER, name))
                self.assertEqual(from_dict(Config, json.loads(json.dumps(to_dict(config)))), config)
                folder = os.path.basename(config.data.folder)
                self.assertIn(f'DIR=$DATA/{folder}\n', readme)
                self.assertTrue(function.startswith(f'config_{folder.replace("-", "_")}'))
        for test_set, pair in re.findall(r'sacrebleu -t (\S+) -l (\S+)', readme):
            self.assertIn(pair, DATASETS[test_set].langpairs)


class JobScriptTest(FolderTest):
    """With stand-ins for the commands that the scripts call; a real Slurm was not at hand."""

    def run_script(self, name, *arguments, **commands):
        """Runs a recipe with one-line shell scripts in place of commands; returns exit code and output."""
        for command, line in commands.items():
            with open(self.path(command), 'w') as file:
                file.write(f'#!/bin/bash\n{line}\n')
            os.chmod(file.name, stat.S_IRWXU)
        environment = {'PATH': f'{self.folder}:/usr/bin:/bin', 'SLURM_JOB_ID': '1234567'}
        found = subprocess.run(['bash', os.path.join(FOLDER, name), *arguments], env=environment, cwd=ROOT,
                               capture_output=True, text=True)  # fmt: skip
        return found.returncode, found.stdout.splitlines()

    def test_two_hosts_know_each_other(self):
        for index in (0, 1):
            code, (told, flags) = self.run_script('two_hosts.sh', str(index), 'one.example', 'two.example',
                                                  python='echo "$TF_CONFIG"; echo "$@"')  # fmt: skip
            with mock.patch.dict(os.environ, TF_CONFIG=told):
                want = {'worker': ['one.example:2222', 'two.example:2222']}, 'worker', index
                self.assertEqual(find_job(), want)
            self.assertIn('nmt_train.py --strategy multi_worker', flags)
            self.assertEqual(code, 0)
        self.assertNotEqual(self.run_script('two_hosts.sh', '0', 'one.example')[0], 0)

    def test_a_slurm_job_begins_again_where_a_machine_was_lost(self):
        for code, again in ((0, False), (1, True), (137, True), (2, False), (143, False)):
            srun = f'echo "$SEQUENCING_PORT" "$@"; exit {code}'
            got, (said, *then) = self.run_script('slurm_job.sh', srun=srun, scontrol='echo "$@"')
            self.assertEqual((got, then), (code, ['requeue 1234567'] if again else []))
            self.assertRegex(said, '^24567 .*python nmt_train.py --strategy multi_worker')


if __name__ == '__main__':
    unittest.main()
