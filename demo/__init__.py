"""A recorded robot episode, replayed over real DDS into both nodes: `python -m demo`."""
