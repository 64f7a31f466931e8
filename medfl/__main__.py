"""`python -m medfl`: the command, where its script is not in the path."""

from medfl.cli import main

if __name__ == "__main__":  # not in processes that a command begins
    main()
