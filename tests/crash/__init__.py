"""Real processes, real disks, real sockets: nodes are killed, lose power, run out of room.

    server      one node in a process of its own; what is killed
    processes   starts, asks, stops, kills such processes; three of them are a cluster
    history     what clients did and were told, and the checks of whether it was true
    clients     the load: writers and workers that write their history
    nemesis     what happens to the nodes, decided by a seed
    disks       file systems that can lose power or run full; disk calls that fail
    __main__    many seeds: python -m tests.crash --help

What needs root, mounts or a compiler has the marker `faults`.
"""
