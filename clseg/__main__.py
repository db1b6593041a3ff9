"""`python -m clseg` is `clseg`."""

from clseg.cli.app import main

if __name__ == "__main__":
    main()
