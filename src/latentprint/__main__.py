"""``python -m latentprint``: the command line."""

from latentprint.cli import main

if __name__ == "__main__":
    main()
