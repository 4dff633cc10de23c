"""Trained networks for other tools: NIR for spiking ones, ONNX and QONNX for quantised ones, and plain state_dicts."""

from lightning_polystep.exports.command import export
from lightning_polystep.exports.nir_check import check_nir
from lightning_polystep.exports.nir_graph import to_nir
from lightning_polystep.exports.nir_reader import from_nir
from lightning_polystep.exports.onnx_check import check_onnx, run_onnxruntime, run_qonnx
from lightning_polystep.exports.onnx_qcdq import to_onnx
from lightning_polystep.exports.parity import Parity
from lightning_polystep.exports.qonnx import to_qonnx
from lightning_polystep.exports.state_dicts import state_dict_for

__all__ = [
    "Parity",
    "check_nir",
    "check_onnx",
    "export",
    "from_nir",
    "run_onnxruntime",
    "run_qonnx",
    "state_dict_for",
    "to_nir",
    "to_onnx",
    "to_qonnx",
]
