"""Small files in the layout of MNIST's."""

import struct

import torch


def write_idx(path, tensor):
    header = struct.pack(f">BBBB{tensor.ndim}I", 0, 0, 8, tensor.ndim, *tensor.shape)
    path.write_bytes(header + tensor.to(torch.uint8).contiguous().numpy().tobytes())


def write_mnist(root, size=28, train=50, top_label=9, folder="MNIST"):
    """Random images whose labels count up to ``top_label`` again and again."""
    raw = root / folder / "raw"
    raw.mkdir(parents=True)
    for name, count in (("train", train), ("t10k", 20)):
        write_idx(raw / f"{name}-images-idx3-ubyte", torch.randint(0, 256, (count, size, size)))
        write_idx(raw / f"{name}-labels-idx1-ubyte", torch.arange(count) % (top_label + 1))
    return root
