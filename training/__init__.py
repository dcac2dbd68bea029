"""From scripted demonstrations in simulation to a small trained policy: README.md."""
