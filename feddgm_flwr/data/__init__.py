"""Real images: what they are, where they lie, and which client owns which."""
