"""What a run leaves for people: the metrics file, figures, the model card and the copy on the Hub.

Nothing here is imported until it is used; the modules are `metrics`, `figures`, `card`, `hub` and `progress`.
"""
