"""What is searched when a network is tuned: the space, the search and the policy thresholds."""
