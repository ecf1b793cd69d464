"""Pages for people: the report of an output folder, the model card, comparisons."""
