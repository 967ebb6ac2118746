"""`python -m ritornello.cli` is the command `ritornello`."""

from ritornello.cli.entry import main

main()
