"""Runs the network in this folder on the inputs beside it; needs numpy and onnxruntime, nothing else.

`dynamic.onnx` takes any number of inputs; `single.onnx` is faster for one at a time.
"""

import sys
from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
inputs, expected = np.load(here / "inputs.npy"), np.load(here / "expected.npz")
options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(here / "dynamic.onnx", options, providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
found = dict(zip(names, session.run(None, {value.name: inputs for value in session.get_inputs()}), strict=True))
same = True
for name in (name for name in names if name.startswith("answer")):
    right = expected[f"dynamic/{name}"]
    error = np.abs(found[name].astype(float) - right).max() / np.abs(right).max()
    same &= bool(error <= 1e-4)
    print(f"{name} {found[name].shape}: {error:.1e} of the largest value from what is expected")
for name in (name for name in names if name.startswith("decision:")):
    point = name.removeprefix("decision:")
    asked, right = found[f"items:{point}"].ravel(), expected[f"decision/{point}"]
    differ = int((~np.isclose(found[name].reshape(-1, *right.shape[1:]), right[asked])).sum())
    differ += int((np.bincount(asked, minlength=len(right)) != expected[f"reached/{point}"]).sum())
    same &= differ == 0
    print(f"{name}: {len(asked)} decisions, {differ} of them other than expected")
sys.exit(0 if same else "DIFFERENT")
