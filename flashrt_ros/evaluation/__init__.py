"""Bags in, metrics, plots and reports out. Nothing here needs ROS."""
