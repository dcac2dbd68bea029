"""What a policy is made of, as launches: vision, prefill, and the denoise loop in its plain form."""
