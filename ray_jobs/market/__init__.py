"""The simulated marketplace with a known answer: numpy and polars only, no Ray."""
