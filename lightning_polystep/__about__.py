"""The version of the package, in the one place that the build, the code and the documentation read."""

__version__ = "0.1.0"
