"""Behaviour-aware item vectors, the tokenizer's front in OneRec's technical report (arXiv 2506.13695).

Token vectors of an item's text and image go through a QFormer of a few queries, which learns from two losses: items
that users meet together lie close (contrastive), and the item's own text can be told from its vectors (caption).
"""
