"""What the simulated robots are told to do. Apart from their models, which need MuJoCo."""

PICK_AND_PLACE = 'pick up the purple cube and place it on the green disc'
TRANSFER = 'hand the red cube from the right arm to the left arm'
