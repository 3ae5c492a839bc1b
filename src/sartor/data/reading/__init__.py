"""Rows, wherever they are: files, folders, the Hub, data sets in memory, several mixed; each row keeps its place."""
