"""`python -m hybridkit` is the command `hybridkit`."""

from hybridkit.cli import main

if __name__ == "__main__":
    main()
