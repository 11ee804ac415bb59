"""What a score is: data, networks, scoring. Never imports Ray."""
