"""Studies of learning: variants of one experiment, run in turn, compared in a table and a plot."""
