"""Simulated robots (MuJoCo): physics, cameras, and what a robot's own controller does. Without ROS.

Needs the packages of requirements-sim.txt.
"""
