"""clipstem: fine-tune CLIP on image-question-option exams and score them."""

__version__ = "0.1.0"
