"""The command `ritornello`: what operators of a cluster, and scripts, do with it.

main       the command, its options, and with what status it ends
contexts   clusters by name, in a file
output     tables for people, lines for programs
sessions, cluster, events, work, bench, top    the commands
"""
