"""`python -m medfl`: the command, where its script is not in the path."""

from medfl.cli import main

main()
