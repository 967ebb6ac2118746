"""Commands for what is not a running node: backups, new clusters out of them, damaged disks.

backup, restore, recover   the commands themselves
refusals                   how they end that cannot do it: a sentence, and the status for it
disk                       reads what a stopped node has on disk, and changes none of it
rebirth                    a state becomes the beginning of another cluster
salvage                    reads what is left of a journal and a checkpoint that are damaged
child                      runs the server as a part of a program, for `api.dev`

`docs/operations.md` says when to use which.
"""
