"""Looking for questions that a model had better not learn from: `python -m clipstem.curate`."""
