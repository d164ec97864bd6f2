"""Examples as functions, and the paper's story as a notebook; ``tests/test_examples.py`` runs each, small."""
