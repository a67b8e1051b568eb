"""Runs the network in this folder on the inputs beside it; needs numpy and onnxruntime, nothing else."""

from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).parent
inputs, expected = np.load(here / "inputs.npy"), np.load(here / "expected.npz")
session = onnxruntime.InferenceSession(here / "dynamic.onnx", providers=["CPUExecutionProvider"])
answers = [o.name for o in session.get_outputs() if o.name.startswith("answer")]
for name, answer in zip(answers, session.run(answers, {"x": inputs}), strict=True):
    right = expected[f"dynamic/{name}"]
    off = np.abs(answer.astype(float) - right).max() / np.abs(right).max()
    print(f"{name} {answer.shape}: {off:.1e} of the largest value from what is expected")
