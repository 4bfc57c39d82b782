"""`python -m tfc` is `tfc`."""

from tfc.cli import main

if __name__ == "__main__":
    main()
