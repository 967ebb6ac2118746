"""A server that lives in memory: for tests of what uses Ritornello.

The front end, the double queue and the state machine are those of a real server. What is missing is
Raft, the disk, and the passing of time: a batch is committed as soon as it is sent, and the clock
is moved by whoever tests. So what a test sees is what the cluster would do, without the sleep.

Why no node with a clock that can be moved? Its deadlines, elections and stalls hang on the same
clock as its leases, and would all take place, too, when a test moves it by a day.

The client's distribution finds this by the entry points of the group `ritornello.testing`, and
imports nothing of it.
"""
