"""Entry point of `python -m edgediff`."""

from edgediff.cli import main

if __name__ == "__main__":
    main()
