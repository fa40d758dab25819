"""What TensorBoard shows of a run: names of curves, their layout, settings beside results."""
