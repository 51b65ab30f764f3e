"""`asdm`, also as `python -m asdm_cli`: Ctrl-C is looked after before anything else is imported."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the process's command line and return the exit code."""
    try:
        from asdm_cli import cli
    except KeyboardInterrupt:
        return 130  # nothing has begun, so there is nothing to tell
    return cli.main()


if __name__ == "__main__":
    sys.exit(main())
