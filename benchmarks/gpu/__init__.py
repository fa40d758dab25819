"""One command that answers what can be asked of a GPU: `make gpu-report`."""
