"""Leave out the examples of modules around a library that is not installed."""

from importlib.util import find_spec

collect_ignore_glob = [
    f"lightning_polystep/interop/{library}*.py" for library in ("snntorch", "brevitas") if find_spec(library) is None
] + [
    f"lightning_polystep/exports/{file}.py"
    for library, files in {"nir": ("nir_*", "command"), "onnx": ("onnx_*", "qonnx")}.items()
    for file in files
    if find_spec(library) is None
]
