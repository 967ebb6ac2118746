"""What both fronts stand on: one thread of the client's own, which speaks with the cluster.

    requests      what was asked, and what may be sent again
    frames        bytes of the protocol, to and from values
    holding       a session that is held: its order, its revisions, its lease
    conversation  all that is asked and held over one connection at a time. Moved by calls: it knows
                  no socket, thread or clock, so that tests can try every way in which it may break
    link          the connection itself: to which node, and to which one next
    rest          what goes over HTTP: lists, events, themes, the cluster
    thread        the thread, and how callers and it hand things to each other

Why a thread: while a handler keeps the user's event loop busy, pings are answered and leases kept
all the same. And one core serves programs with and without an event loop.
"""
