"""The commands of ``edge-app``; one file a command, imported when it is asked for."""
