"""Tables in, memory-mapped histories out: sources, validation, filters, splits and the prepared artefact."""
