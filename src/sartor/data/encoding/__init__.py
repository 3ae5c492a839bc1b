"""From rows to examples: rendered, tokenized in several processes, cut, packed, counted, and kept in a cache."""
