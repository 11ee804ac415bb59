"""What is searched when a network is tuned: the space, the search, and which trials win."""
