"""`python -m jaxlm` is the command `jaxlm`."""

from jaxlm.cli.main import main

if __name__ == "__main__":
    raise SystemExit(main())
