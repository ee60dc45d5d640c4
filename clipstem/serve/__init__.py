"""The verb `serve`: a bundle behind HTTP, and the exam as a page that people take."""
