"""`python -m eddecode.lab` runs the commands of `python -m eddecode.experiments`."""

from eddecode.experiments.__main__ import app

if __name__ == "__main__":
    app()
