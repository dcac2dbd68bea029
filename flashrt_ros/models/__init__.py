"""What each policy computes, in plain PyTorch: the CPU backend and the oracle of every kernel.

Reading order: `spec` (sizes), `tensors` (names and shapes), `siglip`, `gemma`, `pi` (the network), then
`checkpoint` (a directory on disk) with `processing` (observation in, actions out) and `backend` (the policy).
"""
