"""Examples as functions; ``tests/test_examples.py`` runs each of them, small."""
