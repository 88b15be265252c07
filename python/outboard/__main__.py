"""`outboard` and `python -m outboard`. Says what to install where the command line's packages are
missing."""

import sys


def main() -> None:
    try:
        from .cli import main as command
    except ModuleNotFoundError as error:
        if error.name not in ("click", "rich"):
            raise
        sys.exit(
            f"[outboard] the command line needs {error.name}; install it with "
            "`pip install 'outboard[cli]'`"
        )
    command(prog_name="outboard")


if __name__ == "__main__":
    main()
