"""What runs on the cluster: one verb a file, input and output at the edges, no arithmetic."""
