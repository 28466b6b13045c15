import os

os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')  # before anything imports TensorFlow

import tensorflow as tf

# A deprecated helper of TensorFlow's TestCase that runners take for a test and report as skipped.
tf.test.TestCase.test_session = None
