"""The verb ask: a language model answers the questions, as a rival."""
