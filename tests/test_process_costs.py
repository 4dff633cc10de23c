import numpy as np

from lightning_polystep.process_costs import process_costs


def test_what_was_used_counts():
    before = process_costs()
    held = np.ones(2**27, dtype=np.uint8)  # 128 MiB
    total = sum(float(held.sum()) for _ in range(20))
    after = process_costs()
    assert total > 0
    assert after["processor_seconds"] > before["processor_seconds"]
    assert after["peak_memory_mib"] >= max(before["peak_memory_mib"], 128)
