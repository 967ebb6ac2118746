"""How nodes talk to each other: connections, who is at their other end, frames."""
