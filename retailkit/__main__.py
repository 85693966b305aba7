"""`python -m retailkit` is the command `retailkit`."""

from retailkit.cli import main

if __name__ == "__main__":
    main()
