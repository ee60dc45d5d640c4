"""Which of several generated answers to take: verified, voted for, weighed by track records."""
