"""The scoring endpoint: what it accepts, who may ask, and the Ray Serve application."""
