"""What an artifact went through and what it can do, as one page for people."""
