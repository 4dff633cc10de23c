"""What is fast, measured; tests never assert a time."""
