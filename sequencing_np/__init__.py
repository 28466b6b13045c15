"""Inference with NumPy alone, for models that `tools/ckpt2npz.py` has put into one file.

    import sequencing_np
    model = sequencing_np.load('model.npz')
    print(model.translate(['The old house is small.']))

Nothing here imports TensorFlow. `load(path, array_module='cupy')` computes on a GPU where CuPy is installed: its arrays
answer to NumPy's functions, so that only places which make arrays ask for the module.
"""

from sequencing_np.translator import load

__all__ = ['load']
