"""The trie over the catalogue and the one beam search."""
