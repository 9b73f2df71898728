"""The encoder-decoder: item-level context, one decoder over semantic-ID codes, heads per level."""
