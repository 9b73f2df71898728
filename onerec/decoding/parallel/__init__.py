"""Decoding by several processes together, each with a share of a model that is too large for one device.

Blocks are cut by heads and by inner widths, through DeepSpeed's inference (`blocks`); what grows with the catalogue by
ranges of first codes (`share`, `model`). Every process proposes the best continuations below its own codes, and all
keep the best of the proposals (`search`), so that the answers are those of one process, but for the rounding of sums.

What a process of R holds, for a model of width D and N items with vectors of width E:

- of every block 1/R of the matrices, the norms whole; HSTU's blocks and a lazy context's one matrix whole;
- the vectors of codes, of BOS and of positions, and the heads, whole: they grow with the codes, not with the catalogue;
- about N/R items: their own vectors and codes, the vectors of the prefixes above them and of all first codes, and their
  subtree. A first code is never cut, so that the largest may make a share larger than others;
- 4 bytes an item of the whole catalogue for each tree that it keeps (the map from items to leaves, by which items are
  excluded), and the features that pathways read of items, if they do; in its host's memory the whole tree, 16 bytes an
  item.

What it exchanges, with B requests of S history items and W beams, in numbers of 4 bytes:

- a block, a level: 3 sums of B * W * D numbers (one more where it has experts, of as many rows as are routed); before
  the first level, with a context that is not lazy, 2 sums of B * S * D a block;
- a level: 4 numbers for each of B * W candidates, which every process receives from every other one;
- a batch: sums of B * S * E numbers for its items' vectors, of B * S * 3 L for what heads ask of repetition, of 2 B * W
  for the items found, and of B * W * E for rescoring; a bit an item for every tree that is new.

Every process first reads the whole bundle into its host's memory, and cuts it before anything goes to its device.
"""
