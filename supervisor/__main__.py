"""`python -m supervisor` is `supervise`."""

from supervisor.cli import main

if __name__ == "__main__":
    main(prog_name="supervise")
