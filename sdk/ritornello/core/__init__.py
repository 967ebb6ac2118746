"""What both fronts stand on: one thread of the client's own, which speaks with the cluster.

    requests      what was asked, and what is held
    frames        bytes of the protocol, to and from values
    turns         what is asked of sessions that are held: each in its turn, each done once
    leases        when they end, and the signs of life that renew them
    credit        how many sessions the server may push
    conversation  all that is asked and held over one connection at a time. Moved by calls: it knows
                  no socket, thread or clock, so that tests can try every way in which it may break
    nodes, link   to which node, and to which one next; the connection itself
    rest          what goes over HTTP: lists, events, themes, the cluster
    thread        the thread, and how callers and it hand things to each other
    core          all of it together

Why a thread: while a handler keeps the user's event loop busy, pings are answered and leases kept
all the same. And one core serves programs with and without an event loop.
"""
