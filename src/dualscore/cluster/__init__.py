"""Runs on a Slurm cluster: batch scripts, sweeps, submission. Nothing here needs torch."""
