"""The command `ritornello`: what operators of a cluster, and scripts, do with it.

    main      the command, its options, and with what status it ends
    contexts  clusters by name, in a file
    output    tables for people, lines for programs
    calling   what every command has: the cluster that is meant, a client, checked arguments

The other modules are commands.
"""

INTERRUPTED = 130  # the status of whoever ends by a signal, as shells have it for SIGINT
