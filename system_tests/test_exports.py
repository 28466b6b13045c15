"""Promise 6 for every kind of part that there is; `tests/test_exports.py` has a few."""

import dataclasses
import unittest

from tests.export_support import ExportChecks
from tests.numpy_support import AUTOREGRESSIVE, FLOWS
from tests.support import scratch_folder


class EveryExportTest(ExportChecks, unittest.TestCase):
    def setUp(self):
        super().setUp()
        self.folder = scratch_folder(self.addCleanup)

    def test_saved_models(self):
        models = {name: (model, {'decode': 'beam', 'beam_size': 3}) for name, model in AUTOREGRESSIVE.items()}
        noisy = {'decode': 'iw', 'nlen': 2, 'ntr': 2, 'iw_k': 3, 'tau': 0.7, 'seed': 7}
        self.check_saved_models({**models, **{name: (flow, noisy) for name, flow in FLOWS.items()}})

    def test_lite_files(self):
        # LiteRT lacks the float64 arithmetic of nlsq and the search of ava.
        recurrent = FLOWS['flow_recurrent']
        affine = dataclasses.replace(recurrent, prior=dataclasses.replace(recurrent.prior, transform='affine'))
        models = {**AUTOREGRESSIVE, **FLOWS, 'flow_recurrent': affine}
        self.check_lite_files({name: model for name, model in models.items() if name != 'ava'})


if __name__ == '__main__':
    unittest.main()
