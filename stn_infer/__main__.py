"""The command line's entry point: ready for signals before anything large is imported."""

from __future__ import annotations

from stn_infer.interrupts import end_at_once_when_interrupted


def main() -> None:
    """Run the command line."""
    end_at_once_when_interrupted()
    from stn_infer.cli.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
