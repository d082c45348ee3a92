"""`python -m eddecode.cli` is the `eddecode` command."""

from eddecode.cli import main

if __name__ == "__main__":
    main()
