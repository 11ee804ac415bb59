"""The towers, their fusion, the heads, and one rank's training loop."""
