"""Leave out the examples of modules around a library that is not installed."""

from importlib.util import find_spec

collect_ignore_glob = [
    f"lightning_polystep/interop/{library}*.py" for library in ("snntorch", "brevitas") if find_spec(library) is None
]
