"""The embedded default: a small base model, conversations about the world it has read of, and their demonstration.

`world` draws the world, `textbook` writes what the base model reads, `conversations` what the fine-tuned one is taught,
`score` decides which answers are right, `recipe` makes the assets from one seed, and `show` is `sartor demo`.
"""
