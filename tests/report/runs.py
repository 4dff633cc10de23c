"""The folder of a run as the command line leaves it, small and with all that a page shows."""

import base64
import json

NAMES = "epoch,step,train/loss,val/loss,val/accuracy,polystep/flat_rows,polystep/skipped,val/dead_neurons/network.2"
CSV = f"""{NAMES},lr-PolyStep
0,0,,,,,,,0.1
0,1,2.5,,,0.25,0.0,,
0,1,,2.25,0.5,,,0.75,
1,3,1.5,,,0.125,0.0,,
1,3,,1.25,0.75,,,0.625,
"""
# One grey pixel.
PNG = base64.b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGP4DwABAQEAG7buVgAAAABJRU5ErkJggg==")
RESULTS = {
    "seed": 7,
    "steps": 4,
    "epochs": 2,
    "parameters_sha256": "ab" * 32,
    "fit_metrics": {"train/loss": 1.5},
    "threads": 1,
    "packages": {"torch": "2.14.1", "numba": None},
    "candidates": 12345,
    "samples_per_candidate": 583.49,
    "wall_seconds": 10.0,
    "peak_memory_mib": 1234.5,
    "seconds_by_verb": {"observe": 1.0, "score": 3.0},
    "plan": [{"block": "network.1", "rows": 128, "rank": 65, "tier": "outcome", "note": "<none> & such"}],
    "tested": "best checkpoint",
    "test_metrics": {"test/accuracy": 0.9694},
}


def write_run(folder, **changes):
    """Writes the files of a run; a None leaves one out."""
    files = {
        "metrics.csv": CSV,
        "results.json": json.dumps(RESULTS),
        "config.yaml": "model:\n  width: <8>\n",
        "pictures/spikes.png": PNG,
        **changes,
    }
    for name, content in files.items():
        if content is not None:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder
