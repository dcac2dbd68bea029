"""From episodes to figures: what is measured (`actions`, `motion`, `gripper`, `inputs`), and with what
confidence (`sample`). `scores` lists every metric."""
