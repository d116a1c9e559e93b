"""What a policy achieves in each direction, how sure that is, and the page that shows it."""
