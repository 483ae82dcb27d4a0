"""The command `hybridkit`, and `python -m hybridkit`."""

from hybridkit import interrupts


def main() -> None:
    """Run the command line of this process. Nothing is imported before Ctrl-C is in good hands."""
    interrupts.install()
    try:
        import sys

        from hybridkit.cli import run

        code = run()
        interrupts.settle()
    except BaseException:
        if interrupts.arrived():
            interrupts.leave()
        raise
    sys.exit(code)


if __name__ == "__main__":
    main()
