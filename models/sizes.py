"""What fully connected networks ask of their sizes."""

from collections.abc import Sequence


def check_sizes(sizes: Sequence[int], name: str, fewest: int = 2) -> None:
    """Refuse a network without layers, and layers without units.

    Args:
        sizes: Features of the input, of each hidden layer, and of the output.
        name: What the error calls the network.
        fewest: Sizes that it needs.

    Raises:
        ValueError: If ``sizes`` names fewer, or one is below 1.
    """
    if len(sizes) < fewest:
        between = f", and {fewest - 2} between them" if fewest > 2 else ""
        raise ValueError(f"{name}: sizes needs an input and an output size{between}, got {tuple(sizes)}.")
    if min(sizes) < 1:
        raise ValueError(f"{name}: each of sizes must be at least 1, got {tuple(sizes)}.")


def check_two(values: Sequence[int], name: str) -> None:
    """Refuse anything but one number for each of two convolutions.

    Args:
        values: The numbers.
        name: Of the network, and of the argument.

    Raises:
        ValueError: If they are not two.
    """
    if len(values) != 2:
        raise ValueError(f"{name} must be two, of two convolutions, got {tuple(values)}.")
