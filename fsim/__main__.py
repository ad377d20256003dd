"""`python -m fsim` is the same as `fsim`."""

from fsim.cli import main

if __name__ == "__main__":
    main(prog_name="python -m fsim")
