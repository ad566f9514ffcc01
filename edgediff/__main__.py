"""Entry point of `edgediff` and of `python -m edgediff`."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C while it is still being imported ends quietly, too."""
    try:
        from edgediff.cli import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
