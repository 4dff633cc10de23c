"""Compiles the launches that ``triton_cases.py`` prints, from standard input, for a GPU that need not be there.

The interpreter accepts more than the compiler does: variables whose types change in a loop, constants that are none;
and it never fuses a multiplication and an addition.
"""

import json
import sys
from importlib import import_module

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

TARGET = GPUTarget("cuda", 80, 32)  # of the year 2020: what it compiles for, later ones run

if __name__ == "__main__":
    for module, name, types, constants, options in json.load(sys.stdin):
        kernel = getattr(import_module(module), name)
        signature = {key: types.get(key, "constexpr") for key in kernel.arg_names}
        source = ASTSource(kernel, signature, constants)
        assembly = triton.compile(source, target=TARGET, options=options).asm["ptx"]
        # It rounds once where the other implementations round twice; logarithms of float64 have theirs by right.
        assert "fma.rn.f32" not in assembly, f"{module}: {name} fuses; launch it with enable_fp_fusion=False"
    print("all compile")
