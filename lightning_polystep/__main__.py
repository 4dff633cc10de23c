"""``python -m lightning_polystep``: the command line."""

from lightning_polystep.cli import main

if __name__ == "__main__":
    main()
