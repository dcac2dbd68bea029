"""A long run of the real processes on simulated time: does anything grow, is a command missed?"""
