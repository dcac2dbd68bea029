"""From the camera's stamp to the command's publication, in the processes of a robot; see `__main__`."""
