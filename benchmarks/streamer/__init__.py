"""How punctually the streamer sends commands, alone and beside busy processes; see `__main__`."""
