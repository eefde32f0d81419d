"""What a step did: when its actions ran, what its messages did, and how the ranks' records become one timeline."""
