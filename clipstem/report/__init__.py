"""The report: what predictions files say, as one HTML file and as Markdown."""
