"""Lightning around the mathematics: the module, its trainer and callbacks, and how a step is computed."""
