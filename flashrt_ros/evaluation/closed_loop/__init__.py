"""A policy judged by whether the task succeeds: a simulated robot in the place of a bag.

The robot's messages go through the same ingest, planner and executor as those of a bag or of the nodes, on
simulated time: `robot` is the source of messages, `run` one episode, `score` and `report` what came out.
"""
