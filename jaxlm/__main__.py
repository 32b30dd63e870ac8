"""`python -m jaxlm` is the command `jaxlm`."""

import sys
from pathlib import Path

if __name__ == "__main__":
    if sys.path[0] == str(Path.cwd()) != str(Path(__file__).parents[1]):
        del sys.path[0]  # the current folder may be a stranger's, with modules that have the names of libraries
    from jaxlm.cli.main import main

    raise SystemExit(main())
