"""A bag through ingest, policy and executor on the bag's own time, without ROS running.

`feed` reads the inputs, `watch` looks at every tick, `robot` executes, `episode` puts the three together.
"""
