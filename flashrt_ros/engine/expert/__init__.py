"""The denoise loop in its fast form, fused for Hopper, and the way back of exact guidance."""
