"""Run the part of FINN that needs no Vivado on a QONNX file, and compare what the network answers after each step.

    python -m venv finn && finn/bin/pip install finn-plus jinja2 torch
    finn/bin/python scripts/check_finn.py digits.onnx digits.npz

In an environment of its own, because ``finn-plus`` (FINN+, a fork of FINN that installs with pip) pins other versions
of Brevitas and ONNX. The .npz holds ``x``, one sample a row, and ``scores``, what the network answered.
"""

import argparse
import sys
import warnings

import numpy as np
import onnx
from finn.core.onnx_exec import execute_onnx
from finn.transformation.fpgadataflow.convert_to_hw.quantized_matrix_vector_activation import (
    InferQuantizedMatrixVectorActivation,
)
from finn.transformation.fpgadataflow.convert_to_hw.thresholding import InferThresholdingLayer
from finn.transformation.qonnx.convert_qonnx_to_finn import ConvertQONNXtoFINN
from finn.transformation.streamline import Streamline
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.transformation.infer_datatypes import InferDataTypes
from qonnx.util.cleanup import cleanup_model

DOMAINS = ("finn.custom_op.fpgadataflow", "qonnx.custom_op.general")
STEPS = {
    "converted": [ConvertQONNXtoFINN],
    "streamlined": [Streamline, InferDataTypes],
    "layers of hardware": [InferQuantizedMatrixVectorActivation, InferThresholdingLayer],
}


def answers(model: ModelWrapper, samples: np.ndarray) -> np.ndarray:
    """Return the scores of samples, one after the other, as FINN computes them in Python."""
    name, output = model.graph.input[0].name, model.graph.output[0].name
    return np.concatenate([execute_onnx(model, {name: one[None]})[output] for one in samples])


def main() -> int:
    """Take the steps; exit with 1 if one of them changes the class of a sample."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="a QONNX file")
    parser.add_argument("samples", help="an .npz with x and scores")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data = np.load(options.samples)
    model = ModelWrapper(options.file)
    # FINN streams one sample after the other.
    model.set_tensor_shape(model.graph.input[0].name, [1, *data["x"].shape[1:]])
    model = cleanup_model(model)
    unequal = 0
    for step, transformations in STEPS.items():
        for transformation in transformations:
            known = {opset.domain for opset in model.model.opset_import}
            model.model.opset_import.extend(onnx.helper.make_opsetid(name, 1) for name in DOMAINS if name not in known)
            model = model.transform(transformation())
        found = answers(model, data["x"])
        unequal += (wrong := int((found.argmax(1) != data["scores"].argmax(1)).sum()))
        print(f"{step}: {' '.join(node.op_type for node in model.graph.node)}")
        print(f"  {wrong} of {len(found)} classes differ, scores by {np.abs(found - data['scores']).max():.1e} at most")
    return int(unequal > 0)


if __name__ == "__main__":
    sys.exit(main())
