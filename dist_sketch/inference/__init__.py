"""A trained generator at work: it draws, noise is removed, files are written and scored."""
