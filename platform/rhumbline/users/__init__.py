"""People: simulated users, the quiz that finds a person's direction, what is kept of them, and how they agree."""
