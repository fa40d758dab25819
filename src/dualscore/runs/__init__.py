"""The folder of a run, and what keeps a run alive: checkpoints, signals, watchdog, status."""
