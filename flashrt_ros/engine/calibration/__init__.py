"""Activation scales of the 8-bit modes: observed, chosen, stored beside a checkpoint."""
